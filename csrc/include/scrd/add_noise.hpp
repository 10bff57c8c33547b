// Noise synthesis: a patch of simplex noise added to each image of a batch (arXiv 2503.13828,
// section 3.2).
#pragma once

#include <cstddef>
#include <cstdint>

#include "scrd/simplex_noise.hpp"

namespace scrd {

// In pixels, from the upper left corner of the image.
struct Box {
  std::int64_t top, left, height, width;
};

// image[c, y, x] += strength * noise[c, y - top, x - left] inside the box of the image, where noise
// is the octave noise of the image's seed. images: (n, channels, height, width) with strides in
// elements, changed in place and not clipped; no two elements may share memory. An image's noise
// depends on its own box, seed and strength only. Throws InputError and changes nothing then.
void add_noise(float* images, const std::ptrdiff_t strides[4], std::size_t n, std::size_t channels,
               std::size_t height, std::size_t width, const Box* boxes, const std::int64_t* seeds,
               const double* strengths, const Octaves& octaves);

}  // namespace scrd
