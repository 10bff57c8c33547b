// The arithmetic of anomaly_map for one instruction set; see each_isa.hpp. Needs
// anomaly_map_types.hpp.

// The three sums over channels, per pixel: teacher . student, |teacher|^2, |student|^2.
struct Sums {
  float *ts, *tt, *ss;
};

// Channels-first: neighbouring pixels are adjacent, the channels of a pixel `t_step` and `s_step`
// elements apart. Channels come in groups whose sums stay in registers; short partial sums also
// round less. Groups of 4 read 109 GB/s from the last-level cache, of 8 92, of 16 50: the rows of
// a group lie 1, 4 or 16 KB apart, and few such streams are fetched ahead of use.
template <typename T>
static void sum_planes(const T* t, const T* s, std::ptrdiff_t t_step, std::ptrdiff_t s_step,
                       std::size_t channels, std::size_t pixels, Sums sums) {
  constexpr std::size_t kGroup = 4;
  for (std::size_t c = 0; c < channels; c += kGroup) {
    const std::size_t group = channels - c < kGroup ? channels - c : kGroup;
    std::size_t p = 0;
    for (; p + SCRD_WIDTH <= pixels; p += SCRD_WIDTH) {
      f32 ts{}, tt{}, ss{};
      const T *x = t + p, *y = s + p;
      for (std::size_t k = 0; k < group; ++k, x += t_step, y += s_step) {
        const f32 a = load_feature(x), b = load_feature(y);
        ts += a * b;
        tt += a * a;
        ss += b * b;
      }
      store(sums.ts + p, load_f32(sums.ts + p) + ts);
      store(sums.tt + p, load_f32(sums.tt + p) + tt);
      store(sums.ss + p, load_f32(sums.ss + p) + ss);
    }
    for (; p < pixels; ++p) {
      const T *x = t + p, *y = s + p;
      for (std::size_t k = 0; k < group; ++k, x += t_step, y += s_step) {
        const float a = feature(*x), b = feature(*y);
        sums.ts[p] += a * b;
        sums.tt[p] += a * a;
        sums.ss[p] += b * b;
      }
    }
    t += static_cast<std::ptrdiff_t>(group) * t_step;
    s += static_cast<std::ptrdiff_t>(group) * s_step;
  }
}

// One pixel whose channels lie t_step and s_step apart (1: channels-last).
template <typename T>
static void sum_pixel(const T* t, const T* s, std::ptrdiff_t t_step, std::ptrdiff_t s_step,
                      std::size_t channels, Sums sums) {
  std::size_t c = 0;
  float ts = 0, tt = 0, ss = 0;
  if (t_step == 1 && s_step == 1) {
    f32 vts{}, vtt{}, vss{};
    for (; c + SCRD_WIDTH <= channels; c += SCRD_WIDTH) {
      const f32 a = load_feature(t + c), b = load_feature(s + c);
      vts += a * b;
      vtt += a * a;
      vss += b * b;
    }
    ts = sum_of(vts), tt = sum_of(vtt), ss = sum_of(vss);
  }
  for (; c < channels; ++c) {
    const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(c);
    const float a = feature(t[i * t_step]), b = feature(s[i * s_step]);
    ts += a * b;
    tt += a * a;
    ss += b * b;
  }
  *sums.ts = ts, *sums.tt = tt, *sums.ss = ss;
}

// Distances of pixels [begin, end) of one image; sums: scratch for that many pixels, zeroed here.
template <typename T>
static void distances_of(const FeatureView& teacher, const FeatureView& student, std::size_t image,
                         std::size_t begin, std::size_t end, float* out, float* scratch) {
  const std::size_t pixels = end - begin, width = teacher.width;
  const std::ptrdiff_t n = static_cast<std::ptrdiff_t>(image);
  const T* t = static_cast<const T*>(teacher.data) + n * teacher.strides[0];
  const T* s = static_cast<const T*>(student.data) + n * student.strides[0];
  const Sums sums{scratch, scratch + pixels, scratch + 2 * pixels};
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(width);
  if (teacher.strides[3] == 1 && student.strides[3] == 1 && teacher.strides[2] == row &&
      student.strides[2] == row) {
    std::memset(scratch, 0, 3 * pixels * sizeof(float));
    sum_planes(t + begin, s + begin, teacher.strides[1], student.strides[1], teacher.channels,
               pixels, sums);
  } else {
    for (std::size_t p = 0; p < pixels; ++p) {
      const std::ptrdiff_t y = static_cast<std::ptrdiff_t>((begin + p) / width);
      const std::ptrdiff_t x = static_cast<std::ptrdiff_t>((begin + p) % width);
      sum_pixel(t + y * teacher.strides[2] + x * teacher.strides[3],
                s + y * student.strides[2] + x * student.strides[3], teacher.strides[1],
                student.strides[1], teacher.channels, Sums{sums.ts + p, sums.tt + p, sums.ss + p});
    }
  }
  for (std::size_t p = 0; p < pixels; ++p) {
    const float a = __builtin_sqrtf(sums.tt[p]), b = __builtin_sqrtf(sums.ss[p]);
    const float norms = (a < kCosineEps ? kCosineEps : a) * (b < kCosineEps ? kCosineEps : b);
    // 0 * infinity is NaN: a sum that overflowed is seen, where x / infinity would pass as 0.
    out[begin + p] = 1 - sums.ts[p] / norms + 0 * sums.tt[p] + 0 * sums.ss[p];
  }
}

static void distances(const FeatureView& teacher, const FeatureView& student, std::size_t image,
                      std::size_t begin, std::size_t end, float* out, float* scratch) {
  if (teacher.dtype == DType::bf16) {
    distances_of<std::uint16_t>(teacher, student, image, begin, end, out, scratch);
  } else {
    distances_of<float>(teacher, student, image, begin, end, out, scratch);
  }
}

// One scale of T = [U_0 M_0 | U_1 M_1 | U_2 M_2], rows [begin, end) of the map. matrix: M with rows
// of `stride` floats, a multiple of Tail::kTile; out: rows of `out_stride`.
static void upsample_rows(const BandMatrix& band, const float* matrix, std::size_t stride,
                          std::size_t begin, std::size_t end, float* out, std::size_t out_stride) {
  assert(stride % Tail::kTile == 0);
  for (std::size_t i = begin; i < end; ++i, out += out_stride) {
    const float* u = band.values.data() + i * band.width;
    const float* m = matrix + band.first[i] * stride;
    for (std::size_t x = 0; x < stride; x += SCRD_WIDTH) {
      f32 total{};
      for (std::size_t k = 0; k < band.width; ++k) total += u[k] * load_f32(m + k * stride + x);
      store(out + x, total);
    }
  }
}

// Tail::kTile columns of the map: rows of T times the tile of U^T. Returns the largest value seen.
// rows: a multiple of kTileSums, as there is no code for a rest; count, sources, values: see
// Tail::Tile; map: the first of these columns, or null.
static float multiply_tile(const float* t, std::size_t t_stride, std::size_t rows,
                           std::size_t count, const std::size_t* sources, const float* values,
                           float* map, std::size_t map_stride) {
  constexpr std::size_t kVectors = Tail::kTile / SCRD_WIDTH, kRows = kTileSums / kVectors;
  static_assert(Tail::kTile % SCRD_WIDTH == 0 && kTileSums % kVectors == 0, "no rest of columns");
  assert(rows % kTileSums == 0);
  f32 largest = splat(-__builtin_inff());
  std::size_t r = 0;
  for (; r + kRows <= rows; r += kRows, t += kRows * t_stride) {
    f32 sums[kRows][kVectors] = {};
    for (std::size_t q = 0; q < count; ++q) {
      for (std::size_t i = 0; i < kRows; ++i) {
        const float factor = t[i * t_stride + sources[q]];
        for (std::size_t v = 0; v < kVectors; ++v) {
          sums[i][v] += factor * load_f32(values + q * Tail::kTile + v * SCRD_WIDTH);
        }
      }
    }
    for (std::size_t i = 0; i < kRows; ++i) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        largest = sums[i][v] > largest ? sums[i][v] : largest;
        if (map != nullptr) store(map + (r + i) * map_stride + v * SCRD_WIDTH, sums[i][v]);
      }
    }
  }
  float most = largest[0];
  for (int i = 1; i < SCRD_WIDTH; ++i) most = largest[i] > most ? largest[i] : most;
  return most;
}
