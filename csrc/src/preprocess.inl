// The arithmetic of preprocess for one instruction set; see each_isa.hpp. Needs
// preprocess_types.hpp.
//
// Every value takes the same two interpolations, rows first, whatever the memory it comes from:
// images in different layouts give the same bits.

static_assert(kPad >= SCRD_WIDTH, "padding for a whole vector");

typedef double f64 __attribute__((vector_size(SCRD_WIDTH * 8)));

static inline f32 load_f32(const double* from) {
  return __builtin_convertvector(load<f64>(from), f32);
}

static inline void put(float* to, f32 v) { store(to, v); }
static inline void put(std::uint16_t* to, f32 v) { store_bf16(to, v); }

static inline f32 blend(f32 a, f32 b, float fraction) { return a + fraction * (b - a); }

// Rows a and b of `count` values -> line, which has room for whole vectors.
template <typename T>
static void blend_rows(const char* a, const char* b, float fraction, std::size_t count,
                       float* line) {
  // Only loads that allow any alignment follow.
  const T *x = reinterpret_cast<const T*>(a), *y = reinterpret_cast<const T*>(b);
  std::size_t i = 0;
  if (fraction == 0) {
    for (; i + SCRD_WIDTH <= count; i += SCRD_WIDTH) store(line + i, load_f32(x + i));
  } else {
    for (; i + SCRD_WIDTH <= count; i += SCRD_WIDTH) {
      store(line + i, blend(load_f32(x + i), load_f32(y + i), fraction));
    }
  }
  if (i == count) return;
  T rest[2][SCRD_WIDTH] = {};
  std::memcpy(rest[0], a + i * sizeof(T), (count - i) * sizeof(T));
  std::memcpy(rest[1], b + i * sizeof(T), (count - i) * sizeof(T));
  store(line + i,
        fraction == 0 ? load_f32(rest[0]) : blend(load_f32(rest[0]), load_f32(rest[1]), fraction));
}

// The two columns of each output pixel of colour rows a and b, six values each -> line, which has
// room for whole vectors.
template <typename T>
static void blend_pairs(const RowTask& task, const char* a, const char* b, float fraction,
                        float* line) {
  constexpr std::size_t kSpan = (6 + SCRD_WIDTH - 1) / SCRD_WIDTH * SCRD_WIDTH;
  const std::size_t count = 3 * task.image->width;
  for (std::size_t x = 0; x < task.size; ++x, line += 6) {
    const std::size_t first = 3 * task.low[x];
    const T *u = reinterpret_cast<const T*>(a) + first, *v = reinterpret_cast<const T*>(b) + first;
    T ends[2][kSpan];
    if (first + kSpan > count) {  // a vector would reach beyond the row
      std::memcpy(ends[0], u, 6 * sizeof(T));
      std::memcpy(ends[1], v, 6 * sizeof(T));
      std::memset(ends[0] + 6, 0, (kSpan - 6) * sizeof(T));
      std::memset(ends[1] + 6, 0, (kSpan - 6) * sizeof(T));
      u = ends[0], v = ends[1];
    }
    for (std::size_t i = 0; i < kSpan; i += SCRD_WIDTH) {
      store(line + i, blend(load_f32(u + i), load_f32(v + i), fraction));
    }
  }
}

// The values of a row that are used, one after the other in their own dtype.
template <typename T>
static void pack_row(const RowTask& task, const char* row, char* to) {
  const ImageView& image = *task.image;
  const std::size_t channels = image.channels, pixel = channels * sizeof(T);
  if (task.pairs && task.adjacent) {  // grey: see blend_pairs
    for (std::size_t x = 0; x < task.size; ++x, to += 2 * sizeof(T)) {
      std::memcpy(to, row + task.low[x] * sizeof(T), 2 * sizeof(T));
    }
    return;
  }
  for (std::size_t i = 0; i < task.columns; ++i, to += pixel) {
    const std::size_t column = task.pairs ? task.low[i / 2] + i % 2 : i;
    const char* from = row + static_cast<std::ptrdiff_t>(column) * image.column_stride;
    std::memcpy(to, from, sizeof(T));
    if (channels == 1) continue;
    std::memcpy(to + sizeof(T), from + image.channel_stride, sizeof(T));
    std::memcpy(to + 2 * sizeof(T), from + 2 * image.channel_stride, sizeof(T));
  }
}

// line[position[i]] and the value after it.
static inline Two load_pairs(const float* line, const std::int32_t* position) {
#if defined(SCRD_AVX2) || defined(SCRD_AVX512)
  // Loads of two values take two thirds of the time of two gathers.
  __m128 two[SCRD_WIDTH / 2];
  for (int i = 0; i < SCRD_WIDTH / 2; ++i) {
    const __m128i first = _mm_loadl_epi64((const __m128i*)(line + position[2 * i]));
    const __m64* second = (const __m64*)(line + position[2 * i + 1]);
    two[i] = _mm_loadh_pi(_mm_castsi128_ps(first), second);
  }
#endif
#if defined(SCRD_AVX512)
  __m512 a = _mm512_castps128_ps512(two[0]), b = _mm512_castps128_ps512(two[1]);
  a = _mm512_insertf32x4(a, two[2], 1), b = _mm512_insertf32x4(b, two[3], 1);
  a = _mm512_insertf32x4(a, two[4], 2), b = _mm512_insertf32x4(b, two[5], 2);
  a = _mm512_insertf32x4(a, two[6], 3), b = _mm512_insertf32x4(b, two[7], 3);
  return {(f32)_mm512_shuffle_ps(a, b, 0x88), (f32)_mm512_shuffle_ps(a, b, 0xdd)};
#elif defined(SCRD_AVX2)
  const __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(two[0]), two[2], 1);
  const __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(two[1]), two[3], 1);
  return {(f32)_mm256_shuffle_ps(a, b, 0x88), (f32)_mm256_shuffle_ps(a, b, 0xdd)};
#else
  Two v;
  for (int i = 0; i < SCRD_WIDTH; ++i) v.a[i] = line[position[i]], v.b[i] = line[position[i] + 1];
  return v;
#endif
}

template <typename Out>
static inline void put_some(Out* to, f32 v, std::size_t count) {
  if (count >= SCRD_WIDTH) {
    put(to, v);
  } else {
    Out whole[SCRD_WIDTH];
    put(whole, v);
    std::memcpy(to, whole, count * sizeof(Out));
  }
}

// Three channels of SCRD_WIDTH neighbouring pixels.
struct Pixels {
  f32 channel[3];
};

// A vector as lanes of four floats.
constexpr int kLanes = SCRD_WIDTH / 4;
#if defined(SCRD_AVX512)
static inline f32 join(const float* const from[kLanes]) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(from[0]));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(from[1]), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(from[2]), 2);
  return (f32)_mm512_insertf32x4(v, _mm_loadu_ps(from[3]), 3);
}
// Lane k: v[4 k + I], four times.
template <int I>
static inline f32 spread(f32 v) {
  return (f32)_mm512_permute_ps((__m512)v, I * 0x55);
}
// Lane k of p[i] is pixel 4 k + i; the results are in the order of the pixels.
static inline Pixels planes(const f32 p[4]) {
  const __m512 a = (__m512)p[0], b = (__m512)p[1], c = (__m512)p[2], d = (__m512)p[3];
  const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
  const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  return {{(f32)_mm512_unpacklo_pd(ab, cd), (f32)_mm512_unpackhi_pd(ab, cd),
           (f32)_mm512_unpacklo_pd(ab_high, cd_high)}};
}
#elif defined(SCRD_AVX2)
static inline f32 join(const float* const from[kLanes]) {
  const __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(from[0]));
  return (f32)_mm256_insertf128_ps(v, _mm_loadu_ps(from[1]), 1);
}
template <int I>
static inline f32 spread(f32 v) {
  return (f32)_mm256_permute_ps((__m256)v, I * 0x55);
}
static inline Pixels planes(const f32 p[4]) {
  const __m256 a = (__m256)p[0], b = (__m256)p[1], c = (__m256)p[2], d = (__m256)p[3];
  const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
  const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
  const __m256d ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  const __m256d cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  return {{(f32)_mm256_unpacklo_pd(ab, cd), (f32)_mm256_unpackhi_pd(ab, cd),
           (f32)_mm256_unpacklo_pd(ab_high, cd_high)}};
}
#else
static inline f32 join(const float* const from[kLanes]) { return load_f32(from[0]); }
template <int I>
static inline f32 spread(f32 v) {
  return splat(v[I]);
}
static inline Pixels planes(const f32 p[4]) {
#if defined(SCRD_NEON)
  const float32x4x2_t even = vzipq_f32((float32x4_t)p[0], (float32x4_t)p[2]);
  const float32x4x2_t odd = vzipq_f32((float32x4_t)p[1], (float32x4_t)p[3]);
  const float32x4x2_t first = vzipq_f32(even.val[0], odd.val[0]);
  return {{(f32)first.val[0], (f32)first.val[1], (f32)vzip1q_f32(even.val[1], odd.val[1])}};
#else
  Pixels pixels;
  for (int c = 0; c < 3; ++c) pixels.channel[c] = f32{p[0][c], p[1][c], p[2][c], p[3][c]};
  return pixels;
#endif
}
#endif

// Lane k: the pixel at position[4 k], and a float that is not used.
static inline f32 load_lanes(const float* line, const std::int32_t* position) {
  const float* from[kLanes];
  for (int k = 0; k < kLanes; ++k) from[k] = line + 3 * position[4 * k];
  return join(from);
}

static inline Pixels colour_pixels(const RowTask& task, const float* line, std::size_t x) {
  f32 p[4];
  if (!task.resized) {
    for (std::size_t i = 0; i < 4; ++i) {
      const float* from[kLanes];
      for (std::size_t k = 0; k < kLanes; ++k) from[k] = line + 3 * (x + i + 4 * k);
      p[i] = join(from);
    }
    return planes(p);
  }
  const f32 fraction = load_f32(task.fraction + x);
  const f32 spreads[4] = {spread<0>(fraction), spread<1>(fraction), spread<2>(fraction),
                          spread<3>(fraction)};
  for (std::size_t i = 0; i < 4; ++i) {
    p[i] = load_lanes(line, task.position + x + i);
    p[i] += spreads[i] * (load_lanes(line + 3, task.position + x + i) - p[i]);
  }
  return planes(p);
}

static inline f32 grey_pixels(const RowTask& task, const float* line, std::size_t x) {
  if (!task.resized) return load_f32(line + x);
  const Two pairs = load_pairs(line, task.position + x);
  return pairs.a + load_f32(task.fraction + x) * (pairs.b - pairs.a);
}

template <typename T, typename Out>
static void rows_of(const RowTask& task, std::size_t begin, std::size_t end, char* const packed[2],
                    float* line, Out* out) {
  const ImageView& image = *task.image;
  const std::size_t channels = image.channels;
  const std::size_t count = channels * task.columns;
  const std::size_t plane = task.size * task.size;
  std::size_t held[2] = {image.height, image.height};  // the rows in `packed`
  for (std::size_t y = begin; y < end; ++y) {
    const std::size_t low = task.row_low[y];
    const float fraction = task.row_fraction[y];
    const char* rows[2];
    for (std::size_t i = 0; i < 2; ++i) {
      const std::size_t source = fraction == 0 ? low : low + i;
      const char* row = static_cast<const char*>(image.data) +
                        static_cast<std::ptrdiff_t>(source) * image.row_stride;
      if (task.adjacent && (!task.pairs || channels == 3)) {
        rows[i] = row;
        continue;
      }
      const std::size_t slot = source % 2;
      if (held[slot] != source) pack_row<T>(task, row, packed[slot]);
      held[slot] = source;
      rows[i] = packed[slot];
    }
    if (task.pairs && task.adjacent && channels == 3) {
      blend_pairs<T>(task, rows[0], rows[1], fraction, line);
    } else {
      blend_rows<T>(rows[0], rows[1], fraction, count, line);
    }
    // The column after the last is the last: what an edge interpolates with, at fraction 0.
    for (std::size_t c = 0; c < channels; ++c) line[count + c] = line[count - channels + c];
    Out* to = out + y * task.size;
    for (std::size_t x = 0; x < task.size; x += SCRD_WIDTH) {
      Pixels pixels;
      if (channels == 3) {
        pixels = colour_pixels(task, line, x);
      } else {
        const f32 grey = grey_pixels(task, line, x);
        pixels = {grey, grey, grey};
      }
      for (std::size_t c = 0; c < 3; ++c) {
        put_some(to + c * plane + x, pixels.channel[c] * task.scale[c] + task.offset[c],
                 task.size - x);
      }
    }
  }
}

template <typename Out>
static void rows(const RowTask& task, std::size_t begin, std::size_t end, char* const packed[2],
                 float* line, Out* out) {
  switch (task.image->dtype) {
    case DType::u8:
      return rows_of<std::uint8_t>(task, begin, end, packed, line, out);
    case DType::u16:
      return rows_of<std::uint16_t>(task, begin, end, packed, line, out);
    case DType::f32:
      return rows_of<float>(task, begin, end, packed, line, out);
    default:
      return rows_of<double>(task, begin, end, packed, line, out);
  }
}

static void rows_f32(const RowTask& task, std::size_t begin, std::size_t end, char* const packed[2],
                     float* line, float* out) {
  rows(task, begin, end, packed, line, out);
}

static void rows_bf16(const RowTask& task, std::size_t begin, std::size_t end,
                      char* const packed[2], float* line, std::uint16_t* out) {
  rows(task, begin, end, packed, line, out);
}

// Whether `count` values, `step` bytes apart, lie in [low, high] as float32, as no NaN does.
template <typename T>
static bool inside_run(const char* from, std::size_t count, std::ptrdiff_t step, float low,
                       float high) {
  const f32 lows = splat(low), highs = splat(high);
  i32 inside[4] = {lows == lows, lows == lows, lows == lows, lows == lows};
  std::size_t i = 0;
  if (step == static_cast<std::ptrdiff_t>(sizeof(T))) {
    const T* x = reinterpret_cast<const T*>(from);  // as in blend_rows, any alignment
    for (; i + 4 * SCRD_WIDTH <= count; i += 4 * SCRD_WIDTH) {
      for (std::size_t k = 0; k < 4; ++k) {
        const f32 v = load_f32(x + i + k * SCRD_WIDTH);
        inside[k] &= (v >= lows) & (v <= highs);
      }
    }
  }
  bool all = true;
  for (; i < count; ++i) {
    T value;
    std::memcpy(&value, from + static_cast<std::ptrdiff_t>(i) * step, sizeof value);
    const float v = static_cast<float>(value);
    all &= v >= low && v <= high;
  }
  const i32 total = inside[0] & inside[1] & inside[2] & inside[3];
  for (int k = 0; k < SCRD_WIDTH; ++k) all &= total[k] != 0;
  return all;
}

template <typename T>
static bool finite_run(const char* from, std::size_t count, std::ptrdiff_t step) {
  return inside_run<T>(from, count, step, -FLT_MAX, FLT_MAX);
}

// Whether all values of rows [begin, end) of an image are finite as float32.
template <typename T>
static bool finite_rows_of(const ImageView& image, std::size_t begin, std::size_t end) {
  const std::ptrdiff_t item = sizeof(T), channels = static_cast<std::ptrdiff_t>(image.channels);
  const bool adjacent =
      image.column_stride == channels * item && (channels == 1 || image.channel_stride == item);
  for (std::size_t y = begin; y < end; ++y) {
    const char* row =
        static_cast<const char*>(image.data) + static_cast<std::ptrdiff_t>(y) * image.row_stride;
    if (adjacent) {
      if (!finite_run<T>(row, image.width * image.channels, item)) return false;
      continue;
    }
    for (std::ptrdiff_t c = 0; c < channels; ++c) {
      if (!finite_run<T>(row + c * image.channel_stride, image.width, image.column_stride)) {
        return false;
      }
    }
  }
  return true;
}

static bool finite_rows(const ImageView& image, std::size_t begin, std::size_t end) {
  return image.dtype == DType::f64 ? finite_rows_of<double>(image, begin, end)
                                   : finite_rows_of<float>(image, begin, end);
}

static bool inside_f32(const char* from, std::size_t count, float low, float high) {
  return inside_run<float>(from, count, sizeof(float), low, high);
}
static bool inside_f64(const char* from, std::size_t count, float low, float high) {
  return inside_run<double>(from, count, sizeof(double), low, high);
}
