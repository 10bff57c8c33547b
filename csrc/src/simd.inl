// Vectors of SCRD_WIDTH floats for one instruction set; included by each_isa.hpp only.
// Arithmetic, comparisons and selection are the compiler's own vector operators.

typedef float f32 __attribute__((vector_size(SCRD_WIDTH * 4)));
typedef std::int32_t i32 __attribute__((vector_size(SCRD_WIDTH * 4)));
typedef std::uint32_t u32 __attribute__((vector_size(SCRD_WIDTH * 4)));
typedef std::uint16_t u16 __attribute__((vector_size(SCRD_WIDTH * 2)));
typedef std::uint8_t u8 __attribute__((vector_size(SCRD_WIDTH)));

template <typename Vector, typename T>
static inline Vector load(const T* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(Vector));
  return v;
}

template <typename Vector, typename T>
static inline void store(T* to, Vector v) {
  std::memcpy(to, &v, sizeof(Vector));
}

static inline f32 splat(float value) { return value - f32{}; }

// Zero-extended. One instruction, which compilers do not make of a conversion: gcc 12 takes bytes
// one at a time.
static inline i32 widen(const std::uint8_t* from) {
#if defined(SCRD_AVX512)
  return (i32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(SCRD_AVX2)
  return (i32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#elif defined(SCRD_NEON)
  const uint8x8_t four = (uint8x8_t)vdup_n_u32(load<std::uint32_t>(from));
  return (i32)vmovl_u16(vget_low_u16(vmovl_u8(four)));
#else
  return __builtin_convertvector(load<u8>(from), i32);
#endif
}
static inline i32 widen(const std::uint16_t* from) {
#if defined(SCRD_AVX512)
  return (i32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(SCRD_AVX2)
  return (i32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(SCRD_NEON)
  return (i32)vmovl_u16(vld1_u16(from));
#else
  return __builtin_convertvector(load<u16>(from), i32);
#endif
}

// As numbers: SCRD_WIDTH values of any kind -> floats.
static inline f32 load_f32(const float* from) { return load<f32>(from); }
static inline f32 load_f32(const std::uint8_t* from) {
  return __builtin_convertvector(widen(from), f32);
}
static inline f32 load_f32(const std::uint16_t* from) {
  return __builtin_convertvector(widen(from), f32);
}

// bfloat16 is the upper half of a float32.
static inline f32 load_bf16(const std::uint16_t* from) {
#if defined(SCRD_NEON)
  return (f32)vshll_n_u16(vld1_u16(from), 16);
#else
  return (f32)((u32)widen(from) << 16);
#endif
}

// Round to nearest, ties to even; a NaN stays one.
static inline void store_bf16(std::uint16_t* to, f32 v) {
  const u32 bits = (u32)v;
  const u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32 nan = (bits >> 16) | 0x40u;
  const u32 chosen = v == v ? rounded : nan;
#if defined(SCRD_NEON)
  vst1_u16(to, vmovn_u32((uint32x4_t)chosen));
#else
  store(to, __builtin_convertvector(chosen, u16));
#endif
}

// Features: float32, or bfloat16 in 16 bits.
static inline f32 load_feature(const float* from) { return load_f32(from); }
static inline f32 load_feature(const std::uint16_t* from) { return load_bf16(from); }

// Twice as many. Of bfloat16, a has those of even and b those of odd index, which takes half of the
// instructions that their order takes; in_order puts such a pair into the order of memory.
struct Two {
  f32 a, b;
};

static inline Two load_two(const float* from) {
  return {load_f32(from), load_f32(from + SCRD_WIDTH)};
}
static inline Two load_two(const std::uint16_t* from) {
  const u32 both = load<u32>(from);
  return {(f32)(both << 16), (f32)(both & 0xffff0000u)};
}

static inline Two in_order(Two v, const float*) { return v; }
static inline Two in_order(Two v, const std::uint16_t*) {
#if defined(SCRD_AVX512)
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  return {(f32)_mm512_permutex2var_ps((__m512)v.a, first, (__m512)v.b),
          (f32)_mm512_permutex2var_ps((__m512)v.a, second, (__m512)v.b)};
#elif defined(SCRD_AVX2)
  const __m256 low = _mm256_unpacklo_ps((__m256)v.a, (__m256)v.b);
  const __m256 high = _mm256_unpackhi_ps((__m256)v.a, (__m256)v.b);
  return {(f32)_mm256_permute2f128_ps(low, high, 0x20),
          (f32)_mm256_permute2f128_ps(low, high, 0x31)};
#elif defined(SCRD_NEON)
  return {(f32)vzip1q_f32((float32x4_t)v.a, (float32x4_t)v.b),
          (f32)vzip2q_f32((float32x4_t)v.a, (float32x4_t)v.b)};
#else
  return {f32{v.a[0], v.b[0], v.a[1], v.b[1]}, f32{v.a[2], v.b[2], v.a[3], v.b[3]}};
#endif
}

static inline void store_feature(float* to, f32 v) { store(to, v); }
static inline void store_feature(std::uint16_t* to, f32 v) { store_bf16(to, v); }
static inline float feature(float value) { return value; }
static inline float feature(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

static inline float sum_of(f32 v) {
#if defined(SCRD_AVX512)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(SCRD_AVX2)
  __m128 sums = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
  return _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
#elif defined(SCRD_NEON)
  return vaddvq_f32((float32x4_t)v);
#else
  float total = 0;
  for (int i = 0; i < SCRD_WIDTH; ++i) total += v[i];
  return total;
#endif
}
