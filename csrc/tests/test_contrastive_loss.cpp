#include <cmath>
#include <vector>

#include "check.hpp"
#include "scrd/contrastive_loss.hpp"
#include "scrd/thread_pool.hpp"

namespace scrd {
namespace {

// Three scales of three maps each, whose memory ends where the last map does.
struct Batch {
  std::size_t n;
  std::vector<float> values[kScales][3];
  std::vector<std::uint16_t> halves[kScales][3];
  std::array<LossMaps, kScales> maps;

  Batch(std::size_t images, std::array<std::size_t, kScales> sizes, DType dtype, std::uint64_t seed)
      : n(images) {
    test::Random random(seed);
    for (int k = 0; k < kScales; ++k) {
      const void* data[3];
      for (int m = 0; m < 3; ++m) {
        for (std::size_t i = 0; i < n * sizes[k]; ++i) {
          const std::uint16_t half = test::bf16_cut(static_cast<float>(random.uniform() - 0.3));
          halves[k][m].push_back(half);
          values[k][m].push_back(test::bf16_value(half));
        }
        data[m] = dtype == DType::bf16 ? static_cast<const void*>(halves[k][m].data())
                                       : static_cast<const void*>(values[k][m].data());
      }
      maps[k] = {data[0], data[1], data[2], dtype, sizes[k]};
    }
  }
};

// Below, at and above a vector, a run of float32 sums and a task.
const std::array<std::size_t, kScales> kSizes[] = {
    {1, 15, 16}, {17, 4095, 4097}, {65536, 65537, 140001}};

TEST(sums_and_gradient_are_the_formulas) {
  std::vector<std::vector<float>> plain;  // gradients in float32
  for (Isa isa : available_isas()) {
    const test::UseIsa use(isa);
    std::size_t number = 0;
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (const auto& sizes : kSizes) {
        const Batch batch(2, sizes, dtype, 7);
        std::vector<double> sums(2 * kScales * kLossSums, -1.0);
        contrastive_sums(batch.maps, 2, sums.data());
        std::vector<double> factors(2 * kScales * 3);
        test::Random random(8);
        for (double& factor : factors) factor = random.uniform() - 0.5;
        std::vector<float> wide[kScales];
        std::vector<std::uint16_t> narrow[kScales];
        std::array<void*, kScales> out;
        for (int k = 0; k < kScales; ++k) {
          wide[k].resize(2 * sizes[k]);
          narrow[k].resize(2 * sizes[k]);
          out[k] = dtype == DType::bf16 ? static_cast<void*>(narrow[k].data())
                                        : static_cast<void*>(wide[k].data());
        }
        contrastive_gradient(batch.maps, 2, factors.data(), out);
        for (int k = 0; k < kScales && dtype == DType::f32; ++k) {
          if (isa == Isa::plain) plain.push_back(wide[k]);
          CHECK(test::largest_difference(wide[k], plain[number++]) <= 1e-6);
        }
        for (std::size_t i = 0; i < 2; ++i) {
          for (int k = 0; k < kScales; ++k) {
            const auto& maps = batch.values[k];
            const double* f = factors.data() + (i * kScales + k) * 3;
            double expected[kLossSums] = {};
            for (std::size_t j = i * sizes[k]; j < (i + 1) * sizes[k]; ++j) {
              const double c = maps[0][j], d = maps[1][j], s = maps[2][j];
              const double products[kLossSums] = {c * s, d * s, c * c, d * d, s * s};
              for (int q = 0; q < kLossSums; ++q) expected[q] += products[q];
              const double gradient = f[0] * c + f[1] * d + f[2] * s;
              const double got = dtype == DType::bf16 ? test::bf16_value(narrow[k][j]) : wide[k][j];
              CHECK_NEAR(got, gradient,
                         dtype == DType::bf16 ? std::fabs(gradient) / 256 + 1e-7 : 2e-7);
            }
            for (int q = 0; q < kLossSums; ++q) {
              const double sum = sums[(i * kScales + k) * kLossSums + q];
              CHECK_NEAR(sum, expected[q], 1e-6 * static_cast<double>(sizes[k]));
            }
          }
        }
      }
    }
  }
}

TEST(sums_do_not_depend_on_the_threads) {
  const Batch batch(3, {200000, 70000, 5000}, DType::f32, 9);
  const int before = shared_pool()->threads();
  std::vector<double> one(3 * kScales * kLossSums), four(one.size());
  set_threads(1);
  contrastive_sums(batch.maps, 3, one.data());
  set_threads(4);
  contrastive_sums(batch.maps, 3, four.data());
  set_threads(before);
  CHECK(one == four);
}

}  // namespace
}  // namespace scrd
