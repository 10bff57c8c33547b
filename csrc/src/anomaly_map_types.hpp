// What anomaly_map.cpp hands to its bodies, anomaly_map.inl.
#pragma once

#include <cstddef>

#include "scrd/anomaly_map.hpp"

namespace scrd {

// What norms are clamped to from below.
inline constexpr float kCosineEps = 1e-8f;

// Vectors of sums that multiply_tile keeps in registers. A row of a tile is at least one vector, so
// that rows of the map which come in multiples of this leave no rest.
inline constexpr std::size_t kTileSums = 8;

}  // namespace scrd
