// The two passes over the feature maps that the contrastive loss takes (arXiv 2503.13828,
// section 3.2): the sums from which its cosine distances follow, and the gradient to the student.
#pragma once

#include <array>
#include <cstddef>

#include "scrd/anomaly_map.hpp"
#include "scrd/tensor.hpp"

namespace scrd {

// One scale of a batch: three dense maps (n, size) of one dtype, f32 or bf16, whose elements lie in
// the same order.
struct LossMaps {
  const void *clean = nullptr, *noisy = nullptr, *student = nullptr;
  DType dtype = DType::f32;
  std::size_t size = 0;  // elements of one image's map
};

// c.s, n.s, c.c, n.n and s.s of an image's maps.
constexpr int kLossSums = 5;

// sums (n, 3, 5), per image and scale. Float32 sums of short runs, added in float64: where squares
// overflow float32 a sum is infinite. Equal bits on any number of threads.
void contrastive_sums(const std::array<LossMaps, kScales>& maps, std::size_t n, double* sums);

// gradients[k] (n, size), of the maps' dtype = factors[i, k, 0] clean + factors[i, k, 1] noisy +
// factors[i, k, 2] student. factors: (n, 3, 3).
void contrastive_gradient(const std::array<LossMaps, kScales>& maps, std::size_t n,
                          const double* factors, const std::array<void*, kScales>& gradients);

}  // namespace scrd
