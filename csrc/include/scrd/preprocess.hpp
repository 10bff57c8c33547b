// From images as they come to the normalised network input.
//
// A channel's value is divided by the full scale of its dtype (255, 65535, 1 for floats), resized
// bilinearly with half-pixel centres and repeated edges, without antialiasing and without rounding
// to the image's dtype, and becomes (value - mean) / std. A single channel is repeated three times.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "scrd/tensor.hpp"

namespace scrd {

constexpr std::size_t kPixelChannels = 3;

// The network input: its side in pixels and, per channel, mean and standard deviation in units of
// the full scale.
struct PixelSpec {
  std::size_t size = 0;
  std::array<float, kPixelChannels> mean{}, std{};
};

// Throws InputError, which calls the image `name`, unless it has at least one pixel of one or three
// channels and a dtype of u8, u16, f32 or f64.
void check_image(const ImageView& image, const std::string& name);

// Throws NotFiniteError unless all values of the n images are finite as float32, in which
// everything is computed. The error gives the first place: "name: ... at index (image, row, column,
// channel)" where the images are one batch, "name[image]: ... at index (row, column, channel)"
// where they are a list. The images must have passed check_image.
void check_finite(const ImageView* images, std::size_t n, const std::string& name, bool batch);

// Whether `count` values, f32 or f64 and one after the other, lie in [low, high] as float32; what
// is not finite never does.
bool all_inside(const void* values, DType dtype, std::size_t count, float low, float high);

// n * 3 * size * size, the values of the network input of n images. Throws InputError on a size
// beyond 1 to 65536 and on a std that is not above 0, std::bad_alloc where no memory could hold it.
std::size_t input_values(std::size_t n, const PixelSpec& spec);

// out: (n, 3, size, size) as float32, or as bfloat16 bits, rounded to nearest, ties to even. The
// images must have passed check_image; strides and alignment are free. Throws as input_values.
void preprocess(const ImageView* images, std::size_t n, const PixelSpec& spec, float* out);
void preprocess(const ImageView* images, std::size_t n, const PixelSpec& spec, std::uint16_t* out);

}  // namespace scrd
