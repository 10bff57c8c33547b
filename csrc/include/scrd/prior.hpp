// What is known of normal images besides the network: a normal map, and a foreground.
//
// With t the thumbnail of the network input, z = clip(P t + p, -3, 3) its K components and
// phi = (1, z, z^2 - 1), a normal map predicts on a grid of 16 x 16 cells the distances
// m_k = sum_j phi_j E_jk of a normal image and their spreads s_k = exp(sum_j phi_j L_jk). With f
// the foreground, o the offset, v_k the usual level and B_k the interpolation from the grid to
// scale k, the distances M_k become
//
//   M'_k = (B_k g_k B_k^T) M_k + B_k b_k B_k^T,  g_k = f (1 + o) / (s_k + o),  b_k = f v_k - g_k
//   m_k.
//
// The products are by place. Source: scrd_fast/reference/prior.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scrd/tensor.hpp"

namespace scrd {

class Prior {
 public:
  static constexpr std::size_t kGrid = 16, kCells = kGrid * kGrid;
  static constexpr std::size_t kMaps = 2 * kScales;  // the m_k and the logarithms of the s_k

  // K components; without `maps` there is no normal map, unless `masked` no foreground.
  struct Numbers {
    std::vector<float> projection;  // (K, kCells): P
    std::vector<float> shift;       // (K): p
    std::vector<float> maps;        // (1 + 2 K, kMaps, kCells): E and L
    std::array<float, kScales> level{};
    float offset = 0.5f;
    bool masked = false;
    float dark = 0, bright = 1;  // f rises from 0 to 1 between these values of a thumbnail
  };

  // size: side of the network input, a multiple of 32; sides: of the distances. Throws InputError.
  Prior(std::size_t size, std::array<std::size_t, kScales> sides, Numbers numbers);

  // The network input (3, size, size) -> kCells values: the mean of the channels in two rows of
  // each cell.
  void thumbnail(const float* input, float* out) const;

  // Of one image: thumbnail (kCells), distances (side_k, side_k) -> as many, which may be the same.
  void operator()(const float* thumbnail, const std::array<const float*, kScales>& distances,
                  const std::array<float*, kScales>& out) const;

  std::size_t size() const { return size_; }
  const std::array<std::size_t, kScales>& sides() const { return sides_; }

 private:
  void gain_and_shift(const float* thumbnail, float* grids) const;

  // Between which cells an element of a scale lies, and how far it is from the first to the second.
  struct Taps {
    std::vector<std::uint32_t> low, high;
    std::vector<float> fraction;
  };

  std::size_t size_;
  std::array<std::size_t, kScales> sides_;
  Numbers numbers_;
  std::array<Taps, kScales> taps_;
};

}  // namespace scrd
