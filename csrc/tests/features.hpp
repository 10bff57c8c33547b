// Feature maps in every layout that the kernels take, in memory of exactly the size they may read
// (the address sanitizer sees a step outside).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "check.hpp"
#include "scrd/anomaly_map.hpp"

namespace scrd::test {

enum class Layout { nchw, nhwc, cropped, spaced, reversed, transposed, expanded };
constexpr Layout kLayouts[] = {Layout::nchw,    Layout::nhwc,     Layout::cropped,
                               Layout::spaced,  Layout::reversed, Layout::transposed,
                               Layout::expanded};
using Shape = std::array<std::size_t, 4>;
using Strides = std::array<std::ptrdiff_t, 4>;

inline Strides strides_of(Layout layout, const Shape& shape) {
  const auto c = static_cast<std::ptrdiff_t>(shape[1]), h = static_cast<std::ptrdiff_t>(shape[2]),
             w = static_cast<std::ptrdiff_t>(shape[3]);
  switch (layout) {
    case Layout::nhwc:
      return {h * w * c, 1, w * c, c};
    case Layout::cropped:
      return {c * h * (w + 3), h * (w + 3), w + 3, 1};
    case Layout::spaced:
      return {c * h * (w + 3) * 2, h * (w + 3) * 2, (w + 3) * 2, 2};
    case Layout::reversed:
      return {-c * h * w, -h * w, -w, -1};
    case Layout::transposed:
      return {c * h * w, h * w, 1, h};
    case Layout::expanded:
      return {0, h * w, w, 1};
    default:
      return {c * h * w, h * w, w, 1};
  }
}

// Feature maps that own their memory.
class Features {
 public:
  Features(const Shape& shape, Layout layout, DType dtype, std::uint64_t seed)
      : strides_(strides_of(layout, shape)) {
    std::ptrdiff_t low = 0, high = 0;
    for (int d = 0; d < 4; ++d) {
      const std::ptrdiff_t reach = (static_cast<std::ptrdiff_t>(shape[d]) - 1) * strides_[d];
      (reach < 0 ? low : high) += reach;
    }
    const auto count = static_cast<std::size_t>(high - low + 1);
    void* first = nullptr;
    if (dtype == DType::f32) {
      floats_.reset(new float[count]());
      first = floats_.get() - low;
    } else {
      halves_.reset(new std::uint16_t[count]());
      first = halves_.get() - low;
    }
    view = {first, dtype, shape[0], shape[1], shape[2], shape[3], {}};
    std::copy(strides_.begin(), strides_.end(), view.strides);
    Random random(seed);
    for (std::size_t i = 0; i < shape[0]; ++i) {
      for (std::size_t c = 0; c < shape[1]; ++c) {
        for (std::size_t y = 0; y < shape[2]; ++y) {
          for (std::size_t x = 0; x < shape[3]; ++x) set(i, c, y, x, 2 * random.uniform() - 1);
        }
      }
    }
  }

  void set(std::size_t i, std::size_t c, std::size_t y, std::size_t x, double value) {
    const auto narrow = static_cast<float>(value);
    if (floats_) {
      const_cast<float*>(static_cast<const float*>(view.data))[offset(i, c, y, x)] = narrow;
    } else {
      const_cast<std::uint16_t*>(static_cast<const std::uint16_t*>(view.data))[offset(i, c, y, x)] =
          bf16_cut(narrow);
    }
  }

  double get(std::size_t i, std::size_t c, std::size_t y, std::size_t x) const {
    if (floats_) return static_cast<const float*>(view.data)[offset(i, c, y, x)];
    return bf16_value(static_cast<const std::uint16_t*>(view.data)[offset(i, c, y, x)]);
  }

  FeatureView view;

 private:
  std::ptrdiff_t offset(std::size_t i, std::size_t c, std::size_t y, std::size_t x) const {
    const std::array<std::size_t, 4> index{i, c, y, x};
    std::ptrdiff_t sum = 0;
    for (int d = 0; d < 4; ++d) sum += static_cast<std::ptrdiff_t>(index[d]) * strides_[d];
    return sum;
  }

  Strides strides_;
  std::unique_ptr<float[]> floats_;
  std::unique_ptr<std::uint16_t[]> halves_;
};

using Three = std::array<std::unique_ptr<Features>, kScales>;

inline Three three(const std::array<Shape, kScales>& shapes, Layout layout, DType dtype,
                   std::uint64_t seed) {
  Three all;
  for (int k = 0; k < kScales; ++k) {
    all[k] = std::make_unique<Features>(shapes[k], layout, dtype, seed + 100u * k);
  }
  return all;
}

inline std::array<FeatureView, kScales> views(const Three& features) {
  return {features[0]->view, features[1]->view, features[2]->view};
}

}  // namespace scrd::test
