// Multi-scale cosine distance and scale-weighted anomaly map.
//
// With M_k = 1 - cos(teacher_k, student_k) over channels and U_k = G B_k (B_k the bilinear
// align_corners upsampling, G the Gaussian with a repeated edge pixel):
//
//   map  = sum_k w_k U_k M_k U_k^T          (size x size)
//   mean = sum_k w_k u_k^T M_k u_k          with u_k the column means of U_k
//
// Source: arXiv 2503.13828, section 3; the matrix form is an exact rewriting of its scoring.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "scrd/prior.hpp"
#include "scrd/tensor.hpp"

namespace scrd {

// U (size, side), of which each row is zero but for `width` values from column first[row].
struct BandMatrix {
  std::size_t size = 0, side = 0, width = 0;
  std::vector<std::size_t> first;   // (size)
  std::vector<float> values;        // (size, width)
  std::vector<float> column_means;  // (side)
};

// U of a map of `size` pixels, 1 to 4096, and a distance of `side`, 1 to size. Throws InputError.
BandMatrix upsample_blur_band(std::size_t size, std::size_t side, double sigma);

// What turns the three distances of an image into its map and scores.
class Tail {
 public:
  static constexpr std::size_t kTile = 16;  // columns of the map that are computed at a time

  // size: side of the map, a multiple of kTile; sides: sides of the three distances; sigma: of the
  // blur, 0 for none; weighted: whether the scale weights multiply the distances or are ignored;
  // prior: what the distances are judged by first, or null. Throws InputError.
  Tail(std::size_t size, std::array<std::size_t, kScales> sides, double sigma, bool weighted,
       std::shared_ptr<const Prior> prior = nullptr);

  // distances: three (n, side_k, side_k); thumbnails: (n, Prior::kCells) with a prior, else unused;
  // scale_weights: (n, 3); mean (n) comes from the closed form. map (n, size, size) and max (n) are
  // not computed where both are null; max alone takes the map's arithmetic, not its memory. Throws
  // NotFiniteError on distances that are not finite and, where weights count, InputError on those
  // that do not sum to one.
  void operator()(const std::array<const float*, kScales>& distances, const float* thumbnails,
                  const float* scale_weights, std::size_t n, float* map, float* mean,
                  float* max) const;

  // n * size * size, the values of the maps of n images. Throws std::bad_alloc where no memory
  // could hold them.
  std::size_t map_values(std::size_t n) const;

  std::size_t size() const { return size_; }
  const std::array<std::size_t, kScales>& sides() const { return sides_; }
  const Prior* prior() const { return prior_.get(); }

 private:
  std::array<const float*, kScales> judge(const std::array<const float*, kScales>& distances,
                                          const float* thumbnails, std::size_t n) const;

  std::size_t size_;
  std::array<std::size_t, kScales> sides_;
  bool weighted_;
  std::shared_ptr<const Prior> prior_;
  std::array<BandMatrix, kScales> bands_;
  // U^T of all scales side by side, cut into tiles of kTile columns; a tile keeps the rows in which
  // it is not zero.
  struct Tile {
    std::vector<std::size_t> rows;  // index into the 3 sides, one after the other
    std::vector<float> values;      // (rows, kTile)
  };
  std::vector<Tile> tiles_;
};

// 1 - cosine similarity over channels, each norm clamped to 1e-8 from below: (n, C, h, w) twice
// -> (n, h, w). Throws InputError "teacher[k]" / "student[k]" where the two do not fit, and
// NotFiniteError at features that are NaN or infinite, or so large that the sum of their squares
// over channels is infinite in float32; with check=false the distances of those are NaN instead.
void cosine_distances(const std::array<FeatureView, kScales>& teacher,
                      const std::array<FeatureView, kScales>& student,
                      const std::array<float*, kScales>& distances, bool check = true);

// Both steps: features -> map, mean and max as `tail` gives them. The features' sides must be those
// of the tail. Throws InputError.
void anomaly_map(const Tail& tail, const std::array<FeatureView, kScales>& teacher,
                 const std::array<FeatureView, kScales>& student, const float* thumbnails,
                 const float* scale_weights, float* map, float* mean, float* max);

}  // namespace scrd
