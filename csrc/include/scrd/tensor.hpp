// Views of memory that somebody else owns: a pointer, a shape and strides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scrd {

constexpr int kScales = 3;  // of features and distances, the finest first

enum class DType { u8, u16, f32, f64, bf16 };

inline std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return 1;
    case DType::u16:
    case DType::bf16:
      return 2;
    case DType::f32:
      return 4;
    default:
      return 8;
  }
}

// One image: height x width pixels of 1 or 3 channels. Strides are in bytes, of any sign.
struct ImageView {
  const void* data = nullptr;
  DType dtype = DType::u8;  // u8, u16, f32 or f64
  std::size_t height = 0, width = 0, channels = 0;
  std::ptrdiff_t row_stride = 0, column_stride = 0, channel_stride = 0;
};

// Feature maps (n, channels, height, width); strides in elements, in that order: channels-first
// and channels-last memory are both views of this.
struct FeatureView {
  const void* data = nullptr;
  DType dtype = DType::f32;  // f32 or bf16
  std::size_t n = 0, channels = 0, height = 0, width = 0;
  std::ptrdiff_t strides[4] = {0, 0, 0, 0};
};

}  // namespace scrd
