// Octaves of three-dimensional OpenSimplex noise ("legacy", K. Spencer 2014) on pixel grids.
//
// The values are those of PyPI's `opensimplex`, which scrd_fast/ops/simplex_noise.py computes in
// float64, within 1e-5; which lattice points a value sums is decided exactly as there. The result
// of a point depends on its own coordinates and seed only, bit for bit within an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace scrd {

// sum_o persistence^o * noise(point * 2^o / wavelength), o from 0 to count - 1.
struct Octaves {
  int count;
  double persistence;
  double wavelength;  // of octave 0, in pixels
};

// The permutation of 0..255 that a seed stands for.
void permutation(std::int64_t seed, std::uint8_t table[256]);

// n * depth * height * width, the values of the fields of n seeds. Throws InputError where one of
// the four is 0 or no memory could hold the fields.
std::size_t field_values(std::size_t n, std::size_t depth, std::size_t height, std::size_t width);

// Fields of n seeds: out [s, z, y, x] (n, depth, height, width). Throws InputError.
void simplex_noise(const std::int64_t* seeds, std::size_t n, std::size_t depth, std::size_t height,
                   std::size_t width, const Octaves& octaves, float* out);

// The same field in pieces, for operations that put it elsewhere than into an array of its own.
class NoiseField {
 public:
  static constexpr std::size_t kBlock = 64;  // points computed at a time

  // seeds: of n fields; largest: the longest side of any grid. Throws InputError unless octaves
  // are octaves and all coordinates stay small enough to be told apart.
  NoiseField(const std::int64_t* seeds, std::size_t n, std::size_t largest, const Octaves& octaves);

  // Points begin, begin + 1, ... of field s, of which each is pixel (z, y, x) of a grid that is
  // height x width and any number of layers deep, counted along x first: at most kBlock of them.
  void operator()(std::size_t s, std::size_t begin, std::size_t count, std::size_t height,
                  std::size_t width, float* out) const;

 private:
  std::vector<double> positions_;     // pixel -> coordinate in octave 0
  std::vector<float> weights_;        // per octave
  std::vector<std::uint8_t> tables_;  // (n, 2, 256): the permutation, the gradients of its entries
};

}  // namespace scrd
