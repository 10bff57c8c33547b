// The arithmetic of anomaly_map for one instruction set; see each_isa.hpp. Needs
// anomaly_map_types.hpp.

// The three sums over channels, per pixel: teacher . student, |teacher|^2, |student|^2.
struct Sums {
  float *ts, *tt, *ss;
};

static inline void add_products(Two x, Two y, Two& ts, Two& tt, Two& ss) {
  ts.a += x.a * y.a;
  ts.b += x.b * y.b;
  tt.a += x.a * x.a;
  tt.b += x.b * x.b;
  ss.a += y.a * y.a;
  ss.b += y.b * y.b;
}

static inline void add_two(float* to, Two v) {
  store(to, load_f32(to) + v.a);
  store(to + SCRD_WIDTH, load_f32(to + SCRD_WIDTH) + v.b);
}

// Adds the products of kChannels channels, t_step and s_step elements apart, of neighbouring
// pixels, whose sums are kept in the order of load_two.
template <std::size_t kChannels, typename T>
static void add_planes(const T* t, const T* s, std::ptrdiff_t t_step, std::ptrdiff_t s_step,
                       std::size_t pixels, Sums sums) {
  std::size_t p = 0;
  for (; p + 2 * SCRD_WIDTH <= pixels; p += 2 * SCRD_WIDTH) {
    Two ts{}, tt{}, ss{};
    const T *x = t + p, *y = s + p;
    for (std::size_t k = 0; k < kChannels; ++k, x += t_step, y += s_step) {
      add_products(load_two(x), load_two(y), ts, tt, ss);
    }
    add_two(sums.ts + p, ts);
    add_two(sums.tt + p, tt);
    add_two(sums.ss + p, ss);
  }
  for (; p < pixels; ++p) {
    const T *x = t + p, *y = s + p;
    for (std::size_t k = 0; k < kChannels; ++k, x += t_step, y += s_step) {
      const float a = feature(*x), b = feature(*y);
      sums.ts[p] += a * b;
      sums.tt[p] += a * a;
      sums.ss[p] += b * b;
    }
  }
}

// Channels-first: neighbouring pixels are adjacent. Channels come in groups whose sums stay in
// registers; short partial sums also round less. Groups of 4 float32 rows read 62 GB/s from the
// last-level cache with one thread, of 8 55, of 16 40: the rows of a group lie 1, 4 or 16 KB apart,
// and few such streams are fetched ahead of use. To fetch by instruction is slower still. Bfloat16
// has half the bytes and asks for more arithmetic per byte.
template <typename T>
static void sum_planes(const T* t, const T* s, std::ptrdiff_t t_step, std::ptrdiff_t s_step,
                       std::size_t channels, std::size_t pixels, Sums sums) {
  constexpr std::ptrdiff_t kGroup = sizeof(T) == 4 ? 4 : 8;
  for (; channels >= kGroup; channels -= kGroup, t += kGroup * t_step, s += kGroup * s_step) {
    add_planes<kGroup>(t, s, t_step, s_step, pixels, sums);
  }
  for (; channels > 0; --channels, t += t_step, s += s_step) {
    add_planes<1>(t, s, t_step, s_step, pixels, sums);
  }
  for (std::size_t p = 0; p + 2 * SCRD_WIDTH <= pixels; p += 2 * SCRD_WIDTH) {
    float* const all[3] = {sums.ts + p, sums.tt + p, sums.ss + p};
    for (float* of : all) {
      const Two v = in_order({load_f32(of), load_f32(of + SCRD_WIDTH)}, t);
      store(of, v.a);
      store(of + SCRD_WIDTH, v.b);
    }
  }
}

// One pixel whose channels lie t_step and s_step apart (1: channels-last).
template <typename T>
static void sum_pixel(const T* t, const T* s, std::ptrdiff_t t_step, std::ptrdiff_t s_step,
                      std::size_t channels, Sums sums) {
  std::size_t c = 0;
  float ts = 0, tt = 0, ss = 0;
  if (t_step == 1 && s_step == 1) {
    Two vts{}, vtt{}, vss{};
    for (; c + 2 * SCRD_WIDTH <= channels; c += 2 * SCRD_WIDTH) {
      add_products(load_two(t + c), load_two(s + c), vts, vtt, vss);
    }
    ts = sum_of(vts.a + vts.b), tt = sum_of(vtt.a + vtt.b), ss = sum_of(vss.a + vss.b);
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
