// The arithmetic of contrastive_loss for one instruction set; see each_isa.hpp. Needs
// scrd/contrastive_loss.hpp.

template <typename T>
static void sums_of(const T* clean, const T* noisy, const T* student, std::size_t count,
                    double* sums) {
  constexpr std::size_t kRun = 4096;  // elements that are added up in float32
  for (std::size_t begin = 0; begin < count; begin += kRun) {
    const std::size_t end = count - begin < kRun ? count : begin + kRun;
    f32 cs{}, ns{}, cc{}, nn{}, ss{};
    std::size_t i = begin;
    for (; i + SCRD_WIDTH <= end; i += SCRD_WIDTH) {
      const f32 c = load_feature(clean + i), n = load_feature(noisy + i),
                s = load_feature(student + i);
      cs += c * s;
      ns += n * s;
      cc += c * c;
      nn += n * n;
      ss += s * s;
    }
    float rest[kLossSums] = {sum_of(cs), sum_of(ns), sum_of(cc), sum_of(nn), sum_of(ss)};
    for (; i < end; ++i) {
      const float c = feature(clean[i]), n = feature(noisy[i]), s = feature(student[i]);
      rest[0] += c * s;
      rest[1] += n * s;
      rest[2] += c * c;
      rest[3] += n * n;
      rest[4] += s * s;
    }
    for (int k = 0; k < kLossSums; ++k) sums[k] += rest[k];
  }
}

// Elements [begin, end) of one image's maps; the kLossSums sums are added to.
static void loss_sums(const LossMaps& maps, std::size_t begin, std::size_t end, double* sums) {
  if (maps.dtype == DType::bf16) {
    sums_of(static_cast<const std::uint16_t*>(maps.clean) + begin,
            static_cast<const std::uint16_t*>(maps.noisy) + begin,
            static_cast<const std::uint16_t*>(maps.student) + begin, end - begin, sums);
  } else {
    sums_of(static_cast<const float*>(maps.clean) + begin,
            static_cast<const float*>(maps.noisy) + begin,
            static_cast<const float*>(maps.student) + begin, end - begin, sums);
  }
}

template <typename T>
static void combine(const T* clean, const T* noisy, const T* student, std::size_t count,
                    const float* factors, T* out) {
  const float c = factors[0], n = factors[1], s = factors[2];
  std::size_t i = 0;
  for (; i + SCRD_WIDTH <= count; i += SCRD_WIDTH) {
    store_feature(out + i, c * load_feature(clean + i) + n * load_feature(noisy + i) +
                               s * load_feature(student + i));
  }
  if (i == count) return;
  // The last few by the same instructions, so that an element's place does not change its bits.
  T ends[4][SCRD_WIDTH] = {};
  const std::size_t left = (count - i) * sizeof(T);
  std::memcpy(ends[0], clean + i, left);
  std::memcpy(ends[1], noisy + i, left);
  std::memcpy(ends[2], student + i, left);
  store_feature(ends[3],
                c * load_feature(ends[0]) + n * load_feature(ends[1]) + s * load_feature(ends[2]));
  std::memcpy(out + i, ends[3], left);
}

static void loss_gradient(const LossMaps& maps, std::size_t begin, std::size_t end,
                          const float* factors, void* out) {
  if (maps.dtype == DType::bf16) {
    combine(static_cast<const std::uint16_t*>(maps.clean) + begin,
            static_cast<const std::uint16_t*>(maps.noisy) + begin,
            static_cast<const std::uint16_t*>(maps.student) + begin, end - begin, factors,
            static_cast<std::uint16_t*>(out) + begin);
  } else {
    combine(static_cast<const float*>(maps.clean) + begin,
            static_cast<const float*>(maps.noisy) + begin,
            static_cast<const float*>(maps.student) + begin, end - begin, factors,
            static_cast<float*>(out) + begin);
  }
}
