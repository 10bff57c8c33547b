// The arithmetic of simplex_noise for one instruction set; see each_isa.hpp. Needs
// simplex_noise_types.hpp.
//
// The points of a block go through four steps per octave: their place in the lattice (float64),
// which lattice points they sum over, the gradients there (bytes), and the sum (float32).

typedef double f64 __attribute__((vector_size(SCRD_WIDTH * 4)));
typedef std::int64_t i64 __attribute__((vector_size(SCRD_WIDTH * 4)));
typedef float f32_half __attribute__((vector_size(SCRD_WIDTH * 2)));
typedef std::int32_t i32_half __attribute__((vector_size(SCRD_WIDTH * 2)));
typedef std::uint8_t u8_half __attribute__((vector_size(SCRD_WIDTH / 2)));
typedef std::uint8_t bytes __attribute__((vector_size(SCRD_WIDTH * 4)));

static inline f64 floor_of(f64 v) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_roundscale_pd((__m512d)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(SCRD_AVX2)
  return (f64)_mm256_floor_pd((__m256d)v);
#elif defined(SCRD_NEON)
  return (f64)vrndmq_f64((float64x2_t)v);
#else
  const f64 whole = __builtin_convertvector(__builtin_convertvector(v, i32_half), f64);
  return whole > v ? whole - 1 : whole;
#endif
}

// Of the general form gcc 12 makes a comparison and a selection.
static inline f64 smaller(f64 a, f64 b) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(SCRD_NEON)
  return (f64)vminq_f64((float64x2_t)a, (float64x2_t)b);
#else
  return a < b ? a : b;
#endif
}

static inline f64 larger(f64 a, f64 b) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(SCRD_NEON)
  return (f64)vmaxq_f64((float64x2_t)a, (float64x2_t)b);
#else
  return a > b ? a : b;
#endif
}

// The lowest byte of each element. Of a conversion gcc 12 makes a move per element, but for
// AVX-512.
#if defined(SCRD_AVX2)
static inline void store_bytes(std::uint8_t* to, i32_half v) {
  const __m128i lowest = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  _mm_storeu_si32(to, _mm_shuffle_epi8((__m128i)v, lowest));
}
static inline void store_bytes(std::uint8_t* to, i64 v) {
  const __m256 halves = _mm256_castsi256_ps((__m256i)v);
  store_bytes(to, (i32_half)_mm_shuffle_ps(_mm256_castps256_ps128(halves),
                                           _mm256_extractf128_ps(halves, 1), 0x88));
}
static inline void store_bytes(std::uint8_t* to, i32 v) {
  store_bytes(to, (i32_half)_mm256_castsi256_si128((__m256i)v));
  store_bytes(to + 4, (i32_half)_mm256_extracti128_si256((__m256i)v, 1));
}
#elif defined(SCRD_NEON)
static inline void store_bytes(std::uint8_t* to, i32_half v) {
  const uint8x8_t even = vuzp1_u8((uint8x8_t)v, (uint8x8_t)v);
  vst1_lane_u16((std::uint16_t*)to, vreinterpret_u16_u8(vuzp1_u8(even, even)), 0);
}
static inline void store_bytes(std::uint8_t* to, i64 v) {
  store_bytes(to, (i32_half)vmovn_s64((int64x2_t)v));
}
static inline void store_bytes(std::uint8_t* to, i32 v) {
  const uint16x4_t even = vmovn_u32((uint32x4_t)v);
  vst1_lane_u32((std::uint32_t*)to, vreinterpret_u32_u8(vmovn_u16(vcombine_u16(even, even))), 0);
}
#else
static inline void store_bytes(std::uint8_t* to, i32_half v) {
  store(to, __builtin_convertvector(v, u8_half));
}
static inline void store_bytes(std::uint8_t* to, i64 v) {
  store(to, __builtin_convertvector(v, u8_half));
}
static inline void store_bytes(std::uint8_t* to, i32 v) {
  store(to, __builtin_convertvector(v, u8));
}
#endif

// The noise jumps by up to 2e-4 where a point passes from one piece of its cell to another or from
// one case of a tetrahedron to another, and pixels lie on such borders by the thousand. So these
// are float64's roundings in the original's order; powers of two, as `frequency`, round nothing.
static inline void place(const double* stretched, double frequency, int at, NoiseBlock& block) {
  f64 f[3];
  for (int axis = 0; axis < 3; ++axis) {
    const f64 v = load<f64>(stretched + axis * kPoints + at) * frequency;
    const f64 floor = floor_of(v);
    f[axis] = v - floor;
    store_bytes(block.base[axis] + at, __builtin_convertvector(floor, i32_half));
  }
  const f64 total = f[0] + f[1] + f[2];
  const i64 near = total <= 1, far = total >= 2;
  // The far tetrahedron is the near one's mirror image.
  const i64 sign = far & std::numeric_limits<std::int64_t>::min();
  for (int axis = 0; axis < 3; ++axis) {
    f[axis] = (f64)((i64)f[axis] ^ sign);
    store(block.inside[axis] + at, __builtin_convertvector(f[axis], f32_half));
  }
  const f64 rest = far ? total - 3 : 1 - total;
  const f64 median = larger(smaller(f[0], f[1]), smaller(larger(f[0], f[1]), f[2]));
  const i64 code = ((f[0] < f[1]) & kXBelowY) | ((f[2] > f[1]) & kZAboveY) |
                   ((f[2] > f[0]) & kZAboveX) | ((f[1] > f[2]) & kYAboveZ) |
                   ((rest > median) & kEnded) | (~(near | far) & kMiddle) | (far & kFar);
  store_bytes(block.tetrahedron + at, code);
}

static inline f32 magnitude(f32 v) { return (f32)((i32)v & 0x7fffffff); }

// Nothing jumps inside the octahedron: float32 may decide.
static inline void compare_faces(int at, NoiseBlock& block) {
  const f32 x = load_f32(block.inside[0] + at), y = load_f32(block.inside[1] + at),
            z = load_f32(block.inside[2] + at);
  const f32 xy = x + y - 1, xz = x + z - 1, yz = y + z - 1;
  const f32 a = magnitude(xy), b = magnitude(xz), c = magnitude(yz);
  const i32 code = ((xy > 0) & kFarXY) | ((xz > 0) & kFarXZ) | ((yz > 0) & kFarYZ) |
                   ((a < (b < c ? b : c)) & kDropXY) | ((b < c) & kDropXZ) | kMiddle;
  store_bytes(block.octahedron + at, code);
}

// table[index] of 256 entries, and of 64 for an index below that.
#if defined(SCRD_AVX512)
static inline bytes look_up_256(const std::uint8_t* table, bytes index) {
  const __m512i at = (__m512i)index;
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(table), at, _mm512_loadu_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), at,
                                                _mm512_loadu_si512(table + 192));
  return (bytes)_mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high);
}

static inline bytes look_up_64(const std::uint8_t* table, bytes index) {
  return (bytes)_mm512_permutexvar_epi8((__m512i)index, _mm512_loadu_si512(table));
}
#elif defined(SCRD_AVX2)
// A shuffle takes the lowest 4 bits of a byte and writes 0 where the highest is set; a blend
// chooses by the highest, in whose place a shift puts another. To read 16 entries at a time and
// choose costs less than a load per byte or a gather: 8 instead of 15 ns per point and octave.
static inline __m256i look_up_16(const std::uint8_t* table, __m256i at) {
  const __m128i entries = _mm_loadu_si128((const __m128i*)table);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), at);
}

static inline bytes look_up_256(const std::uint8_t* table, bytes index) {
  const __m256i at = (__m256i)index;
  const __m256i low = _mm256_and_si256(at, _mm256_set1_epi8(-113));  // without bits 4 to 6
  const __m256i high = _mm256_xor_si256(low, _mm256_set1_epi8(-128));
  const __m256i bit4 = _mm256_slli_epi16(at, 3), bit5 = _mm256_slli_epi16(at, 2);
  __m256i half[2];
  for (int i = 0; i < 2; ++i, table += 64) {
    __m256i row[4];
    for (int k = 0; k < 4; ++k) {
      row[k] =
          _mm256_or_si256(look_up_16(table + 16 * k, low), look_up_16(table + 128 + 16 * k, high));
    }
    half[i] = _mm256_blendv_epi8(_mm256_blendv_epi8(row[0], row[1], bit4),
                                 _mm256_blendv_epi8(row[2], row[3], bit4), bit5);
  }
  return (bytes)_mm256_blendv_epi8(half[0], half[1], _mm256_slli_epi16(at, 1));
}

static inline bytes look_up_64(const std::uint8_t* table, bytes index) {
  const __m256i at = (__m256i)index, bit4 = _mm256_slli_epi16(at, 3);
  __m256i half[2];
  for (int i = 0; i < 2; ++i, table += 32) {
    half[i] = _mm256_blendv_epi8(look_up_16(table, at), look_up_16(table + 16, at), bit4);
  }
  return (bytes)_mm256_blendv_epi8(half[0], half[1], _mm256_slli_epi16(at, 2));
}
#elif defined(SCRD_NEON)
// An index beyond a table writes 0, or leaves what is there.
static inline bytes look_up_64(const std::uint8_t* table, bytes index) {
  return (bytes)vqtbl4q_u8(vld1q_u8_x4(table), (uint8x16_t)index);
}

static inline bytes look_up_256(const std::uint8_t* table, bytes index) {
  uint8x16_t found = (uint8x16_t)look_up_64(table, index);
  for (int i = 64; i < 256; i += 64) {
    found = vqtbx4q_u8(found, vld1q_u8_x4(table + i), (uint8x16_t)(index - (std::uint8_t)i));
  }
  return (bytes)found;
}
#else
// Eight at a time in a register: a vector that is read right after its bytes were written waits.
static inline bytes look_up_256(const std::uint8_t* table, bytes index) {
  std::uint64_t words[sizeof(bytes) / 8];
  store(words, index);
  for (std::uint64_t& word : words) {
    std::uint64_t found = 0;
    for (int i = 0; i < 64; i += 8) found |= std::uint64_t{table[word >> i & 255]} << i;
    word = found;
  }
  return load<bytes>(words);
}

static inline bytes look_up_64(const std::uint8_t* table, bytes index) {
  return look_up_256(table, index);
}
#endif

// Gradients of the eight lattice points of each point: in coordinates that are mirrored where the
// point is in the far tetrahedron, (1,0,0), (0,1,0) and (0,0,1); (1,1,0), (1,0,1) and (0,1,1), or
// in a tetrahedron its end (0,0,0) in place of the first; and the two extra ones of the case.
// table: the permutation, then the gradient of each of its entries.
static inline void find_gradients(const NoiseCases& cases, const std::uint8_t* table, int at,
                                  NoiseBlock& block) {
  const std::uint8_t *p = table, *g = table + 256;
  const bytes tetrahedron = load<bytes>(block.tetrahedron + at);
  const bytes middle = (bytes)((tetrahedron & kMiddle) != 0);
  const bytes far = (bytes)((tetrahedron & kFar) != 0);
  const bytes code = middle ? load<bytes>(block.octahedron + at) : tetrahedron & 63;
  bytes base[3], from[3], to[3];  // the coordinates 0 and 1, mirrored where far
  for (int axis = 0; axis < 3; ++axis) {
    base[axis] = load<bytes>(block.base[axis] + at);
    from[axis] = base[axis] - far;
    to[axis] = base[axis] + 1 + far;
  }
  const bytes p0 = look_up_256(p, from[0]), p1 = look_up_256(p, to[0]);
  const bytes p00 = look_up_256(p, p0 + from[1]), p01 = look_up_256(p, p0 + to[1]),
              p10 = look_up_256(p, p1 + from[1]), p11 = look_up_256(p, p1 + to[1]);
  store(block.gradients[0] + at, look_up_256(g, p10 + from[2]));
  store(block.gradients[1] + at, look_up_256(g, p01 + from[2]));
  store(block.gradients[2] + at, look_up_256(g, p00 + to[2]));
  store(block.gradients[3] + at, look_up_256(g, (middle ? p11 : p00) + from[2]));
  store(block.gradients[4] + at, look_up_256(g, p10 + to[2]));
  store(block.gradients[5] + at, look_up_256(g, p01 + to[2]));
  for (int extra = 0; extra < 2; ++extra) {
    const bytes steps = look_up_64(cases.steps[extra], code);
    store(block.steps[extra] + at, steps);
    const bytes mirrored = steps ^ (far & 63);
    bytes entry = look_up_256(p, base[0] - 1 + (mirrored & 3));
    entry = look_up_256(p, entry + base[1] - 1 + (mirrored >> 2 & 3));
    store(block.gradients[6 + extra] + at,
          look_up_256(g, entry + base[2] - 1 + (mirrored >> 4 & 3)));
  }
}

static inline f32 not_negative(f32 v) {
#if defined(SCRD_AVX512)
  return (f32)_mm512_max_ps((__m512)v, _mm512_setzero_ps());
#elif defined(SCRD_AVX2)
  return (f32)_mm256_max_ps((__m256)v, _mm256_setzero_ps());
#elif defined(SCRD_NEON)
  return (f32)vmaxq_f32((float32x4_t)v, vdupq_n_f32(0));
#else
  return v > 0 ? v : f32{};
#endif
}

// table[index % 4]
static inline f32 look_up_4(const float* table, i32 index) {
#if defined(SCRD_AVX512)
  return (f32)_mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table)), (__m512i)index);
#elif defined(SCRD_AVX2)
  return (f32)_mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)table), (__m256i)index);
#elif defined(SCRD_NEON)
  // The four bytes of an entry.
  const uint32x4_t at = vmlaq_n_u32(vdupq_n_u32(0x03020100), (uint32x4_t)(index & 3), 0x04040404);
  return (f32)vqtbl1q_u8((uint8x16_t)vld1q_f32(table), (uint8x16_t)at);
#else
  i32 entry[4];
  for (int i = 0; i < 4; ++i) entry[i] = (i32)splat(table[i]);
  const i32 bit0 = index << 31 >> 31, bit1 = index << 30 >> 31;
  return (f32)(bit1 ? (bit0 ? entry[3] : entry[2]) : (bit0 ? entry[1] : entry[0]));
#endif
}

// max(0, 2 - |d|^2)^4 * (gradient . d), where the bits of `kept` are set
static inline f32 contribution(f32 dx, f32 dy, f32 dz, const std::uint8_t* gradients, i32 kept) {
  const i32 packed = widen(gradients);
  const f32 dot = look_up_4(kComponents, packed) * dx + look_up_4(kComponents, packed >> 2) * dy +
                  look_up_4(kComponents, packed >> 4) * dz;
  const f32 reach = 2 - dx * dx - dy * dy - dz * dz;
  const f32 inside = (f32)((i32)not_negative(reach) & kept);
  const f32 squared = inside * inside;
  return squared * squared * dot;
}

static inline f32 noise_of(int at, const NoiseBlock& block) {
  const i32 all = i32{} - 1;
  const i32 one = (i32)splat(1.0f);
  const i32 middle = (widen(block.tetrahedron + at) & kMiddle) != 0;
  // Where a point is mirrored its coordinates f are stored as -f, to become 1 - f: the sign tells.
  f32 x = load_f32(block.inside[0] + at), y = load_f32(block.inside[1] + at),
      z = load_f32(block.inside[2] + at);
  const i32 sign = (i32)x & std::numeric_limits<std::int32_t>::min();
  const f32 mirror = (f32)((sign >> 31) & one);
  x += mirror, y += mirror, z += mirror;
  // From the stretched lattice back to space: the way from the base to the point.
  const f32 third = splat(1.0f / 3);
  const f32 squish = (x + y + z) * third;
  x += squish, y += squish, z += squish;
  const f32 ux = x - third, uy = y - third, uz = z - third;  // seen from (1,0,0) but for its 1
  f32 total = contribution(ux - 1, uy, uz, block.gradients[0] + at, all);
  total += contribution(ux, uy - 1, uz, block.gradients[1] + at, all);
  total += contribution(ux, uy, uz - 1, block.gradients[2] + at, all);
  const f32 px = ux - third, py = uy - third, pz = uz - third;  // from a pair
  total += contribution(middle ? px - 1 : x, middle ? py - 1 : y, middle ? pz : z,
                        block.gradients[3] + at, all);
  total += contribution(px - 1, py, pz - 1, block.gradients[4] + at, middle);
  total += contribution(px, py - 1, pz - 1, block.gradients[5] + at, middle);
  for (int extra = 0; extra < 2; ++extra) {
    const i32 steps = widen(block.steps[extra] + at);
    const f32 away = look_up_4(kThirds, steps >> 6);
    total += contribution(
        x - look_up_4(kSteps, steps) - away, y - look_up_4(kSteps, steps >> 2) - away,
        z - look_up_4(kSteps, steps >> 4) - away, block.gradients[6 + extra] + at, all);
  }
  return (f32)((i32)total ^ sign);
}

static void place_points(const double* stretched, double frequency, NoiseBlock& block) {
  for (int at = 0; at < kPoints; at += SCRD_WIDTH / 2) place(stretched, frequency, at, block);
}

static void choose_points(const NoiseCases& cases, const std::uint8_t* table, NoiseBlock& block) {
  for (int at = 0; at < kPoints; at += SCRD_WIDTH) compare_faces(at, block);
  for (int at = 0; at < kPoints; at += 4 * SCRD_WIDTH) find_gradients(cases, table, at, block);
}

// stretched: (3, kPoints) coordinates in the stretched lattice, octave 0; table: see
// find_gradients; weights: per octave, with the division by 103; out: (kPoints).
static void octave_noise(const NoiseCases& cases, const std::uint8_t* table,
                         const double* stretched, const float* weights, int octaves, float* out) {
  // A block is written in small pieces and read in large ones, which wait until the writes are
  // through: so the next octave is placed before this one is summed (8 percent faster).
  NoiseBlock blocks[2];
  double frequency = 1;
  place_points(stretched, frequency, blocks[0]);
  choose_points(cases, table, blocks[0]);
  for (int octave = 0; octave < octaves; ++octave) {
    const NoiseBlock& block = blocks[octave % 2];
    NoiseBlock& next = blocks[1 - octave % 2];
    const bool more = octave + 1 < octaves;
    if (more) place_points(stretched, frequency *= 2, next);
    for (int at = 0; at < kPoints; at += SCRD_WIDTH) {
      const f32 before = octave == 0 ? f32{} : load_f32(out + at);
      store(out + at, before + weights[octave] * noise_of(at, block));
    }
    if (more) choose_points(cases, table, next);
  }
}
