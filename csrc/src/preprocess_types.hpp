// What preprocess.cpp hands to its bodies, preprocess.inl.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scrd/preprocess.hpp"
#include "scrd/tensor.hpp"

namespace scrd {

inline constexpr std::size_t kPad = 16;  // floats of the widest vector

// What the rows of one image's output are computed from. Padded arrays have kPad elements more, so
// that whole vectors can be read from any of their `size` elements on.
struct RowTask {
  const ImageView* image;
  std::size_t size;              // side of the output
  const std::size_t* row_low;    // (size): the upper of the two rows of the image
  const float* row_fraction;     // (size): the weight of the lower one
  const std::size_t* low;        // (size): the left of the two columns of the image
  const std::int32_t* position;  // (size, padded): where that column is in a line
  const float* fraction;         // (size, padded): the weight of the right one
  bool adjacent;                 // the values of a row lie one after the other
  bool pairs;                    // a line has the two columns of each output pixel, not all columns
  std::size_t columns;           // pixels of a line
  bool resized;                  // whether there is anything to interpolate along a row
  float scale[kPixelChannels], offset[kPixelChannels];
};

}  // namespace scrd
