#include "scrd/simplex_noise.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"
#include "simplex_noise_types.hpp"

#define SCRD_BODY "simplex_noise.inl"
#include "each_isa.hpp"

namespace scrd {
namespace {

constexpr double kStretch = -1.0 / 6, kNorm = 103;
constexpr double kLargestCoordinate = 1 << 30;  // cells of the lattice are counted in 32 bits
constexpr double kLargestWeight = 1e30;         // of an octave, which float32 must hold
constexpr std::size_t kTaskBlocks = 16;

struct Point {
  int x, y, z;
};

Point corner(int axes) { return {axes & 1, axes >> 1 & 1, axes >> 2 & 1}; }

Point moved(Point point, int axis, int by) {
  const Point step = corner(axis);
  return {point.x + by * step.x, point.y + by * step.y, point.z + by * step.z};
}

// A set of axes is a bit mask: 1 for x, 2 for y, 4 for z.
struct Extras {
  Point points[2];
};

Extras tetrahedron_extras(int code) {
  const bool x_below_y = code & kXBelowY, z_above_y = code & kZAboveY, z_above_x = code & kZAboveX;
  const bool y_above_z = code & kYAboveZ;
  // The two axes with the largest coordinates.
  int first = 1, second = 2;
  bool second_larger = x_below_y;
  if (!x_below_y && z_above_y) {
    second = 4;
    second_larger = z_above_x;
  } else if (x_below_y && z_above_x) {
    first = 4;
    second_larger = y_above_z;
  }
  if (code & kEnded) {
    const int axis = second_larger ? second : first;
    const int one = axis == 1 ? 2 : 1, other = 7 - axis - one;
    return {{moved(corner(axis), one, -1), moved(corner(axis), other, -1)}};
  }
  const int both = first | second;
  return {{corner(both), moved(corner(both), 7 - both, -1)}};
}

Extras octahedron_extras(int code) {
  const int pairs[3] = {3, 5, 6};
  const int dropped = code & kDropXY ? 0 : code & kDropXZ ? 1 : 2;
  int near = 0, near_count = 0, far = 7;  // union of the single axes, intersection of the pairs
  for (int face = 0; face < 3; ++face) {
    if (face == dropped) continue;
    if (code >> face & 1) {
      far &= pairs[face];
    } else {
      near |= 7 - pairs[face];
      ++near_count;
    }
  }
  if (near_count == 0) return {{corner(7), moved(corner(far), far, 1)}};
  if (near_count == 2) return {{corner(0), moved(corner(near), 7 - near, -1)}};
  return {{moved(corner(far), 7 - far, -1), moved(corner(near), near, 1)}};
}

NoiseCases make_cases() {
  NoiseCases cases = {};
  for (int code = 0; code < 64; ++code) {
    const Extras extras = code & kMiddle ? octahedron_extras(code) : tetrahedron_extras(code);
    for (int extra = 0; extra < 2; ++extra) {
      const auto [x, y, z] = extras.points[extra];
      const int packed = (x + 1) | (y + 1) << 2 | (z + 1) << 4 | (x + y + z) << 6;
      cases.steps[extra][code] = static_cast<std::uint8_t>(packed);
    }
  }
  return cases;
}

const NoiseCases& all_cases() {
  static const NoiseCases cases = make_cases();
  return cases;
}

// Entries of kComponents, two bits per axis.
std::uint8_t packed_gradient(int number) {
  // A long axis beside two short ones; the signs in the order of the original's table.
  constexpr int kNegative[8] = {1, 0, 3, 2, 5, 4, 7, 6};  // sets of axes
  int packed = 0;
  for (int axis = 0; axis < 3; ++axis) {
    packed |= (kNegative[number / 3] >> axis & 1) << (2 * axis + 1);
    packed |= (number % 3 == axis) << (2 * axis);
  }
  return static_cast<std::uint8_t>(packed);
}

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

// Coordinates in the stretched lattice, octave 0, of `count` pixels from number `begin` on.
void stretch(const double* positions, std::size_t begin, std::size_t count, std::size_t height,
             std::size_t width, double* stretched) {
  double point[3][kPoints] = {}, shift[kPoints] = {};
  std::size_t x = begin % width, y = begin / width % height, z = begin / width / height;
  for (std::size_t i = 0; i < count;) {
    const std::size_t end = std::min(count, i + width - x);
    for (; i < end; ++i, ++x) {
      point[0][i] = positions[x], point[1][i] = positions[y], point[2][i] = positions[z];
      shift[i] = (point[0][i] + point[1][i] + point[2][i]) * kStretch;
    }
    x = 0;
    if (++y == height) y = 0, ++z;
  }
  // The product is rounded, as in the original: it must not be fused with the sum.
  asm volatile("" : : "r"(shift) : "memory");
  for (int axis = 0; axis < 3; ++axis) {
    for (int i = 0; i < kPoints; ++i) stretched[axis * kPoints + i] = point[axis][i] + shift[i];
  }
}

}  // namespace

void permutation(std::int64_t seed, std::uint8_t table[256]) {
  // Knuth's linear congruential generator drives a shuffle from the top down.
  auto state = static_cast<std::uint64_t>(seed);
  const auto advance = [&state] { state = state * 6364136223846793005u + 1442695040888963407u; };
  std::uint8_t source[256];
  for (int i = 0; i < 256; ++i) source[i] = static_cast<std::uint8_t>(i);
  for (int i = 0; i < 3; ++i) advance();
  for (int i = 255; i >= 0; --i) {
    advance();
    // (state + 31) modulo i + 1, of the signed value and without an overflow.
    std::int64_t pick = (static_cast<std::int64_t>(state) % (i + 1) + 31) % (i + 1);
    if (pick < 0) pick += i + 1;
    table[i] = source[pick];
    source[pick] = source[i];
  }
}

NoiseField::NoiseField(const std::int64_t* seeds, std::size_t n, std::size_t largest,
                       const Octaves& octaves) {
  // Each written so that a NaN fails it.
  if (octaves.count < 1) fail("octaves", "a positive integer", std::to_string(octaves.count));
  if (!(octaves.wavelength > 0 && std::isfinite(octaves.wavelength))) {
    fail("wavelength", "a positive number of pixels", text_of(octaves.wavelength));
  }
  if (!(octaves.persistence >= 0 &&
        std::pow(octaves.persistence, octaves.count - 1) <= kLargestWeight)) {
    fail("persistence", "a number from 0 whose powers stay below 1e30",
         text_of(octaves.persistence));
  }
  const double frequency = 1 / octaves.wavelength;
  const double shortest =
      std::ldexp(static_cast<double>(std::max<std::size_t>(largest, 1)) / kLargestCoordinate,
                 octaves.count - 1);
  if (!(octaves.wavelength >= shortest)) {
    fail("wavelength",
         "at least " + text_of(shortest) + " pixels for " + std::to_string(octaves.count) +
             " octaves",
         text_of(octaves.wavelength));
  }
  positions_.resize(largest);
  for (std::size_t i = 0; i < largest; ++i) positions_[i] = static_cast<double>(i) * frequency;
  for (int octave = 0; octave < octaves.count; ++octave) {
    weights_.push_back(static_cast<float>(std::pow(octaves.persistence, octave) / kNorm));
  }
  tables_.resize(n * 512);
  std::uint8_t gradients[24];
  for (int i = 0; i < 24; ++i) gradients[i] = packed_gradient(i);
  shared_pool()->for_each(n, [&](std::size_t s) {
    std::uint8_t* table = &tables_[s * 512];
    permutation(seeds[s], table);
    for (int i = 0; i < 256; ++i) table[256 + i] = gradients[table[i] % 24];
  });
}

void NoiseField::operator()(std::size_t s, std::size_t begin, std::size_t count, std::size_t height,
                            std::size_t width, float* out) const {
  double stretched[3 * kPoints];
  stretch(positions_.data(), begin, count, height, width, stretched);
  SCRD_PICK(octave_noise)
  (all_cases(), &tables_[s * 512], stretched, weights_.data(), static_cast<int>(weights_.size()),
   out);
}

std::size_t field_values(std::size_t n, std::size_t depth, std::size_t height, std::size_t width) {
  if (n == 0) fail("seeds", "at least one", "none");
  std::size_t values = n;  // the seeds themselves take more memory
  const std::pair<const char*, std::size_t> sides[] = {
      {"depth", depth}, {"height", height}, {"width", width}};
  for (const auto& [name, side] : sides) {
    if (side == 0) fail(name, "a positive integer", "0");
    if (values > PTRDIFF_MAX / sizeof(float) / side) {
      fail(name, "a field that fits into memory", std::to_string(side) + ", beyond 2^63 bytes");
    }
    values *= side;
  }
  return values;
}

void simplex_noise(const std::int64_t* seeds, std::size_t n, std::size_t depth, std::size_t height,
                   std::size_t width, const Octaves& octaves, float* out) {
  const NoiseField field(seeds, n, std::max({depth, height, width}), octaves);
  const std::size_t points = depth * height * width;
  const std::size_t block = kTaskBlocks * NoiseField::kBlock;
  const std::size_t tasks = (points + block - 1) / block;
  shared_pool()->for_each(n * tasks, [&](std::size_t task) {
    const std::size_t s = task / tasks, first = task % tasks * block;
    float values[NoiseField::kBlock];
    for (std::size_t at = first; at < std::min(first + block, points); at += NoiseField::kBlock) {
      const std::size_t count = std::min(NoiseField::kBlock, points - at);
      field(s, at, count, height, width, values);
      std::copy_n(values, count, out + s * points + at);
    }
  });
}

}  // namespace scrd
