#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.hpp"
#include "scrd/add_noise.hpp"
#include "scrd/error.hpp"
#include "scrd/simplex_noise.hpp"

namespace scrd {
namespace {

const Octaves kOctaves{6, 0.6, 32};

TEST(a_permutation_holds_every_number_once) {
  for (std::int64_t seed : {std::int64_t{0}, std::int64_t{-5}, std::int64_t{1} << 62,
                            std::numeric_limits<std::int64_t>::min()}) {
    std::uint8_t table[256];
    permutation(seed, table);
    std::vector<int> seen(256);
    for (std::uint8_t value : table) ++seen[value];
    for (int count : seen) CHECK(count == 1);
  }
}

// The values themselves are held against the reference from Python; here it is the memory.
TEST(fields_of_every_size_fill_their_memory_alike) {
  const std::int64_t seeds[] = {3, 4};
  std::vector<float> plain;
  for (Isa isa : available_isas()) {
    const test::UseIsa use(isa);
    for (std::size_t side : {1, 5, 31, 64}) {
      std::vector<float> field(2 * 3 * side * side, std::nanf(""));
      simplex_noise(seeds, 2, 3, side, side, kOctaves, field.data());
      for (float value : field) CHECK(std::abs(value) <= 2.4f);
      if (side != 31) continue;
      if (isa == Isa::plain) plain = field;
      CHECK(test::largest_difference(field, plain) <= 1e-6);
    }
  }
}

TEST(fields_that_do_not_exist) {
  CHECK(field_values(2, 3, 5, 7) == 210);
  CHECK_THROWS(InputError, "seeds: expected at least one, got none", field_values(0, 3, 5, 7));
  CHECK_THROWS(InputError, "depth: expected a positive integer, got 0", field_values(2, 0, 5, 7));
  CHECK_THROWS(InputError, "height: expected a positive integer, got 0", field_values(2, 3, 0, 7));
  CHECK_THROWS(InputError, "width: expected a positive integer, got 0", field_values(2, 3, 5, 0));
  const std::size_t most = PTRDIFF_MAX / sizeof(float);
  CHECK(field_values(1, 1, most, 1) == most);
  CHECK_THROWS(InputError,
               "width: expected a field that fits into memory, got 2, beyond 2^63 bytes",
               field_values(1, 1, most, 2));
}

TEST(noise_is_added_inside_the_box_only) {
  constexpr std::size_t kHeight = 20, kWidth = 17;
  const std::int64_t seed = 11;
  const double strength = 0.2;
  for (Isa isa : available_isas()) {
    const test::UseIsa use(isa);
    const Box box{7, 3, 13, 14};  // to the last row and column
    std::vector<float> image(3 * kHeight * kWidth, 0.5f), field(3 * 13 * 14);
    const std::ptrdiff_t strides[] = {3 * kHeight * kWidth, kHeight * kWidth, kWidth, 1};
    add_noise(image.data(), strides, 1, 3, kHeight, kWidth, &box, &seed, &strength, kOctaves);
    simplex_noise(&seed, 1, 3, 13, 14, kOctaves, field.data());
    for (std::size_t i = 0; i < image.size(); ++i) {
      const std::size_t x = i % kWidth, y = i / kWidth % kHeight, c = i / (kWidth * kHeight);
      const bool inside = y >= 7 && x >= 3;
      const double noise = inside ? field[(c * 13 + y - 7) * 14 + x - 3] : 0;
      CHECK_NEAR(image[i], 0.5 + strength * noise, 1e-6);
    }
  }
}

}  // namespace
}  // namespace scrd
