#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/preprocess.hpp"

namespace scrd {
namespace {

const PixelSpec kSpec{16, {0.5f, 0.25f, 0.125f}, {0.5f, 2.0f, 0.25f}};

// The rule as a formula, in double: one value of the network input.
double expected(const ImageView& image, std::size_t c, std::size_t y, std::size_t x) {
  const auto taps = [](std::size_t i, std::size_t length, std::size_t& low, std::size_t& high) {
    const double at =
        (static_cast<double>(i) + 0.5) * static_cast<double>(length) / kSpec.size - 0.5;
    const double centre = std::min(std::max(at, 0.0), static_cast<double>(length - 1));
    low = static_cast<std::size_t>(centre);
    high = std::min(low + 1, length - 1);
    return centre - static_cast<double>(low);
  };
  const auto value = [&](std::size_t row, std::size_t column) -> double {
    const char* at =
        static_cast<const char*>(image.data) + static_cast<std::ptrdiff_t>(row) * image.row_stride +
        static_cast<std::ptrdiff_t>(column) * image.column_stride +
        static_cast<std::ptrdiff_t>(image.channels == 3 ? c : 0) * image.channel_stride;
    if (image.dtype == DType::u8) return *reinterpret_cast<const std::uint8_t*>(at) / 255.0;
    std::uint16_t wide;
    std::memcpy(&wide, at, sizeof wide);
    return wide / 65535.0;
  };
  std::size_t top, bottom, left, right;
  const double fy = taps(y, image.height, top, bottom), fx = taps(x, image.width, left, right);
  const double upper = (1 - fx) * value(top, left) + fx * value(top, right);
  const double lower = (1 - fx) * value(bottom, left) + fx * value(bottom, right);
  return ((1 - fy) * upper + fy * lower - kSpec.mean[c]) / kSpec.std[c];
}

// Every size with both dtypes, packed and mirrored; the memory ends where the image does.
TEST(images_of_any_size_and_stride_are_resized) {
  std::vector<std::vector<float>> plain;  // what this set makes of each case
  for (Isa isa : available_isas()) {
    const test::UseIsa use(isa);
    test::Random random(5);
    std::size_t number = 0;
    for (std::size_t height : {1, 2, 16, 33, 70}) {
      for (std::size_t width : {1, 3, 16, 31, 200}) {
        for (DType dtype : {DType::u8, DType::u16}) {
          for (std::size_t channels : {1, 3}) {
            std::vector<std::uint8_t> memory(height * width * channels * item_size(dtype));
            for (std::uint8_t& byte : memory) byte = static_cast<std::uint8_t>(random.bits());
            const auto item = static_cast<std::ptrdiff_t>(item_size(dtype));
            ImageView image{memory.data(), dtype, height, width, channels, 0, 0, item};
            image.column_stride = item * static_cast<std::ptrdiff_t>(channels);
            image.row_stride = image.column_stride * static_cast<std::ptrdiff_t>(width);
            ImageView mirrored = image;
            mirrored.data = memory.data() + memory.size() - channels * item_size(dtype);
            mirrored.row_stride = -image.row_stride;
            mirrored.column_stride = -image.column_stride;
            const ImageView images[] = {image, mirrored};
            std::vector<float> out(input_values(2, kSpec));
            preprocess(images, 2, kSpec, out.data());
            if (isa == Isa::plain) plain.push_back(out);
            CHECK(test::largest_difference(out, plain[number++]) <= 1e-6);
            for (std::size_t i = 0; i < 2; ++i) {
              for (std::size_t p = 0; p < 3 * kSpec.size * kSpec.size; ++p) {
                const std::size_t plane = kSpec.size * kSpec.size;
                const double wanted =
                    expected(images[i], p / plane, p % plane / kSpec.size, p % kSpec.size);
                CHECK_NEAR(out[i * 3 * plane + p], wanted, 2e-6);
              }
            }
          }
        }
      }
    }
  }
}

TEST(bfloat16_is_the_rounded_float) {
  const std::vector<std::uint8_t> memory{1, 60, 200, 255, 7, 9};
  const ImageView image{memory.data(), DType::u8, 2, 3, 1, 3, 1, 0};
  std::vector<float> wide(input_values(1, kSpec));
  std::vector<std::uint16_t> narrow(wide.size());
  preprocess(&image, 1, kSpec, wide.data());
  preprocess(&image, 1, kSpec, narrow.data());
  for (std::size_t i = 0; i < wide.size(); ++i) {
    const double got = test::bf16_value(narrow[i]);
    CHECK_NEAR(got, wide[i], std::abs(wide[i]) / 256);
  }
}

TEST(images_that_do_not_fit) {
  CHECK_THROWS(InputError, "size: expected 1 to 65536, got 0", input_values(1, PixelSpec{}));
  const float values[] = {0, std::numeric_limits<float>::infinity()};
  const ImageView image{values, DType::f32, 1, 2, 1, 8, 4, 0};
  CHECK_THROWS(NotFiniteError, "x: expected finite values, got inf at index (0, 0, 1)",
               check_finite(&image, 1, "x", true));
}

TEST(all_inside_sees_every_place) {
  const float low = -1, high = 1, nan = std::numeric_limits<float>::quiet_NaN();
  for (Isa isa : available_isas()) {
    const test::UseIsa use(isa);
    for (const std::size_t count : {std::size_t{1}, std::size_t{7}, std::size_t{300}}) {
      std::vector<float> narrow(count, high);
      std::vector<double> wide(count, low);
      CHECK(all_inside(narrow.data(), DType::f32, count, low, high));
      CHECK(all_inside(wide.data(), DType::f64, count, low, high));
      for (std::size_t i = 0; i < count; ++i) {
        for (const float bad : {std::nextafter(high, 2.0f), std::nextafter(low, -2.0f), nan}) {
          narrow[i] = bad;
          wide[i] = bad;
          CHECK(!all_inside(narrow.data(), DType::f32, count, low, high));
          CHECK(!all_inside(wide.data(), DType::f64, count, low, high));
        }
        narrow[i] = 0;
        wide[i] = 0;
      }
    }
  }
}

}  // namespace
}  // namespace scrd
