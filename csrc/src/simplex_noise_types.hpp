// What simplex_noise.cpp hands to its bodies, simplex_noise.inl.
#pragma once

#include <cstdint>
#include <limits>  // which the bodies use

#include "scrd/simplex_noise.hpp"

namespace scrd {

inline constexpr int kPoints = static_cast<int>(NoiseField::kBlock);

// What a point in one of the two tetrahedra of a cell is compared for, in mirrored coordinates
// where it is in the far one; a set of these below 32 is a code.
inline constexpr int kXBelowY = 1, kZAboveY = 2, kZAboveX = 4, kYAboveZ = 8;
inline constexpr int kEnded = 16;  // the tetrahedron's own end is among its two nearest corners
inline constexpr int kMiddle = 32, kFar = 64;

// The same in the octahedron between them. It has three pairs of opposite faces, one per pair of
// axes; the pair that the point is least clearly on one side of is dropped.
inline constexpr int kFarXY = 1, kFarXZ = 2, kFarYZ = 4, kDropXY = 8, kDropXZ = 16;

// Which two lattice points come to the six that all points of a piece share: code, kMiddle
// included -> entries of kSteps, two bits for each of x, y and z, and of kThirds.
struct NoiseCases {
  alignas(64) std::uint8_t steps[2][64];
};

// What two bits stand for.
inline constexpr float kSteps[4] = {-1, 0, 1, 2};                // a coordinate in the lattice
inline constexpr float kThirds[4] = {0, 1.0f / 3, 2.0f / 3, 1};  // of the sum of the three
inline constexpr float kComponents[4] = {4, 11, -4, -11};        // of a gradient

// What is known of the points of a block in one octave.
struct NoiseBlock {
  alignas(64) float inside[3][kPoints];           // coordinates in the cell; negated where far
  alignas(64) std::uint8_t base[3][kPoints];      // the cell, modulo 256
  alignas(64) std::uint8_t tetrahedron[kPoints];  // code, and kMiddle or kFar
  alignas(64) std::uint8_t octahedron[kPoints];   // code, meant for points in the middle
  alignas(64) std::uint8_t steps[2][kPoints];     // see NoiseCases
  alignas(64) std::uint8_t gradients[8][kPoints];
};

}  // namespace scrd
