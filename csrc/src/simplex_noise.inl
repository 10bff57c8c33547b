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

static inline f64 floor_of(f64 v) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_roundscale_pd((__m512d)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(SCRD_AVX2)
  return (f64)_mm256_floor_pd((__m256d)v);
#else
  const f64 whole = __builtin_convertvector(__builtin_convertvector(v, i32_half), f64);
  return whole > v ? whole - 1 : whole;
#endif
}

// Of the general form gcc 12 makes a comparison and a selection.
static inline f64 smaller(f64 a, f64 b) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_min_pd((__m512d)a, (__m512d)b);
#else
  return a < b ? a : b;
#endif
}

static inline f64 larger(f64 a, f64 b) {
#if defined(SCRD_AVX512)
  return (f64)_mm512_max_pd((__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
#endif
}

// The noise jumps by up to 2e-4 where a point passes from one piece of its cell to another or from
// one case of a tetrahedron to another, and pixels lie on such borders by the thousand. So these
// are float64's roundings in the original's order; powers of two, as `frequency`, round nothing.
static inline void place(const double* stretched, double frequency, int at, NoiseBlock& block) {
  f64 f[3];
  for (int axis = 0; axis < 3; ++axis) {
    const f64 v = load<f64>(stretched + axis * kPoints + at) * frequency;
    const f64 floor = floor_of(v);
    f[axis] = v - floor;
    store(block.base[axis] + at,
          __builtin_convertvector(__builtin_convertvector(floor, i32_half), u8_half));
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
  store(block.tetrahedron + at, __builtin_convertvector(code, u8_half));
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
  store(block.octahedron + at, __builtin_convertvector(code, u8));
}

// Gradients of the eight lattice points of each point: in coordinates that are mirrored where the
// point is in the far tetrahedron, (1,0,0), (0,1,0) and (0,0,1); (1,1,0), (1,0,1) and (0,1,1), or
// in a tetrahedron its end (0,0,0) in place of the first; and the two extra ones of the case.
// table: the permutation, then the gradient of each of its entries.
#if defined(SCRD_AVX512)

struct Bytes {
  __m512i part[4];
};

static inline Bytes load_bytes(const std::uint8_t* from) {
  Bytes bytes;
  for (int i = 0; i < 4; ++i) bytes.part[i] = _mm512_loadu_si512(from + 64 * i);
  return bytes;
}

static inline __m512i look_up(const Bytes& table, __m512i index) {
  const __m512i low = _mm512_permutex2var_epi8(table.part[0], index, table.part[1]);
  const __m512i high = _mm512_permutex2var_epi8(table.part[2], index, table.part[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

static inline __m512i look_up(const std::uint8_t* table, __m512i index) {
  return _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table));  // the lower 6 bits of index
}

static inline __m512i sum(__m512i a, __m512i b) { return _mm512_add_epi8(a, b); }

static inline void find_gradients(const NoiseCases& cases, const std::uint8_t* table,
                                  NoiseBlock& block) {
  static_assert(kPoints == 64, "one vector of bytes");
  const Bytes p = load_bytes(table), g = load_bytes(table + 256);
  const __m512i tetrahedron = _mm512_load_si512(block.tetrahedron);
  const __mmask64 middle = _mm512_test_epi8_mask(tetrahedron, _mm512_set1_epi8(kMiddle));
  const __mmask64 far = _mm512_test_epi8_mask(tetrahedron, _mm512_set1_epi8(kFar));
  const __m512i code =
      _mm512_mask_blend_epi8(middle, tetrahedron, _mm512_load_si512(block.octahedron));
  const __m512i number =
      _mm512_or_si512(look_up(cases.number, code), _mm512_maskz_set1_epi8(far, kMirrored));
  _mm512_store_si512(block.number, number);

  __m512i base[3], from[3], to[3];  // the coordinates 0 and 1, mirrored where far
  for (int axis = 0; axis < 3; ++axis) {
    base[axis] = _mm512_load_si512(block.base[axis]);
    const __m512i next = sum(base[axis], _mm512_set1_epi8(1));
    from[axis] = _mm512_mask_blend_epi8(far, base[axis], next);
    to[axis] = _mm512_mask_blend_epi8(far, next, base[axis]);
  }
  const __m512i p0 = look_up(p, from[0]), p1 = look_up(p, to[0]);
  const __m512i p00 = look_up(p, sum(p0, from[1])), p01 = look_up(p, sum(p0, to[1])),
                p10 = look_up(p, sum(p1, from[1])), p11 = look_up(p, sum(p1, to[1]));
  const __m512i first = _mm512_mask_blend_epi8(middle, p00, p11);
  _mm512_store_si512(block.gradients[0], look_up(g, sum(p10, from[2])));
  _mm512_store_si512(block.gradients[1], look_up(g, sum(p01, from[2])));
  _mm512_store_si512(block.gradients[2], look_up(g, sum(p00, to[2])));
  _mm512_store_si512(block.gradients[3], look_up(g, sum(first, from[2])));
  _mm512_store_si512(block.gradients[4], look_up(g, sum(p10, to[2])));
  _mm512_store_si512(block.gradients[5], look_up(g, sum(p01, to[2])));
  for (int extra = 0; extra < 2; ++extra) {
    const auto& steps = cases.steps[extra];
    __m512i entry = look_up(p, sum(base[0], look_up(steps[0], number)));
    entry = look_up(p, sum(sum(base[1], look_up(steps[1], number)), entry));
    entry = look_up(g, sum(sum(base[2], look_up(steps[2], number)), entry));
    _mm512_store_si512(block.gradients[6 + extra], entry);
  }
}

#else

static inline void find_gradients(const NoiseCases& cases, const std::uint8_t* table,
                                  NoiseBlock& block) {
  const std::uint8_t *p = table, *g = table + 256;
  typedef std::uint8_t byte;  // sums are modulo 256
  for (int i = 0; i < kPoints; ++i) {
    const int tetrahedron = block.tetrahedron[i];
    const bool middle = tetrahedron & kMiddle;
    const int mirrored = tetrahedron & kFar ? kMirrored : 0;
    const int code = (middle ? block.octahedron[i] : tetrahedron) % 64;
    const int number = cases.number[code] | mirrored;
    block.number[i] = static_cast<byte>(number);
    const int x = block.base[0][i], y = block.base[1][i], z = block.base[2][i];
    const int flip = mirrored ? 1 : 0;
    const int x0 = x + flip, x1 = x + 1 - flip, y0 = y + flip, y1 = y + 1 - flip, z0 = z + flip,
              z1 = z + 1 - flip;
    const int p0 = p[byte(x0)], p1 = p[byte(x1)];
    const int p00 = p[byte(p0 + y0)], p01 = p[byte(p0 + y1)], p10 = p[byte(p1 + y0)],
              p11 = p[byte(p1 + y1)];
    block.gradients[0][i] = g[byte(p10 + z0)];
    block.gradients[1][i] = g[byte(p01 + z0)];
    block.gradients[2][i] = g[byte(p00 + z1)];
    block.gradients[3][i] = g[byte((middle ? p11 : p00) + z0)];
    block.gradients[4][i] = g[byte(p10 + z1)];
    block.gradients[5][i] = g[byte(p01 + z1)];
    for (int extra = 0; extra < 2; ++extra) {
      const auto& steps = cases.steps[extra];
      const int px = p[byte(x + steps[0][number])];
      const int pxy = p[byte(px + y + steps[1][number])];
      block.gradients[6 + extra][i] = g[byte(pxy + z + steps[2][number])];
    }
  }
}

#endif

static inline f32 not_negative(f32 v) {
#if defined(SCRD_AVX512)
  return (f32)_mm512_max_ps((__m512)v, _mm512_setzero_ps());
#else
  return v > 0 ? v : f32{};
#endif
}

// table[index % 32]
static inline f32 look_up(const float* table, i32 index) {
#if defined(SCRD_AVX512)
  return (f32)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)index,
                                     _mm512_loadu_ps(table + 16));
#elif defined(SCRD_AVX2)
  return (f32)_mm256_i32gather_ps(table, (__m256i)(index & 31), 4);
#else
  f32 values;
  for (int i = 0; i < SCRD_WIDTH; ++i) values[i] = table[index[i] & 31];
  return values;
#endif
}

// A component of a gradient by the two lowest bits: 4, 11, -4, -11.
static inline f32 component(i32 packed) {
#if defined(SCRD_AVX512)
  const __m512 values = _mm512_broadcast_f32x4(_mm_setr_ps(4, 11, -4, -11));
  return (f32)_mm512_permutexvar_ps((__m512i)packed, values);
#elif defined(SCRD_AVX2)
  const __m256 values = _mm256_setr_ps(4, 11, -4, -11, 4, 11, -4, -11);
  return (f32)_mm256_permutevar8x32_ps(values, (__m256i)packed);
#else
  return __builtin_convertvector((4 + 7 * (packed & 1)) * (1 - (packed & 2)), f32);
#endif
}

// max(0, 2 - |d|^2)^4 * (gradient . d), where the bits of `kept` are set
static inline f32 contribution(f32 dx, f32 dy, f32 dz, const std::uint8_t* gradients, i32 kept) {
  const i32 packed = widen(gradients);
  const f32 dot =
      component(packed) * dx + component(packed >> 2) * dy + component(packed >> 4) * dz;
  const f32 reach = 2 - dx * dx - dy * dy - dz * dz;
  const f32 inside = (f32)((i32)not_negative(reach) & kept);
  const f32 squared = inside * inside;
  return squared * squared * dot;
}

static inline f32 noise_of(const NoiseCases& cases, int at, const NoiseBlock& block) {
  const i32 all = i32{} - 1;
  const i32 one = (i32)splat(1.0f);
  const i32 number = widen(block.number + at);
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
    const auto& away = cases.away[extra];
    total += contribution(x - look_up(away[0], number), y - look_up(away[1], number),
                          z - look_up(away[2], number), block.gradients[6 + extra] + at, all);
  }
  return (f32)((i32)total ^ sign);
}

static void place_points(const double* stretched, double frequency, NoiseBlock& block) {
  for (int at = 0; at < kPoints; at += SCRD_WIDTH / 2) place(stretched, frequency, at, block);
}

static void choose_points(const NoiseCases& cases, const std::uint8_t* table, NoiseBlock& block) {
  for (int at = 0; at < kPoints; at += SCRD_WIDTH) compare_faces(at, block);
  find_gradients(cases, table, block);
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
      store(out + at, before + weights[octave] * noise_of(cases, at, block));
    }
    if (more) choose_points(cases, table, next);
  }
}
