#include "scrd/prior.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "scrd/error.hpp"

#define SCRD_BODY "prior.inl"
#include "each_isa.hpp"

namespace scrd {
namespace {

void check_count(const char* name, std::size_t wanted, std::size_t found) {
  if (wanted != found) fail(name, std::to_string(wanted) + " numbers", std::to_string(found));
}

// Grows and is kept: no allocation once a thread has seen the largest input.
float* scratch(std::size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

}  // namespace

Prior::Prior(std::size_t size, std::array<std::size_t, kScales> sides, Numbers numbers)
    : size_(size), sides_(sides), numbers_(std::move(numbers)) {
  if (size == 0 || size % 32 != 0 || size > 4096) {
    fail("size", "a multiple of 32 up to 4096", std::to_string(size));
  }
  const std::size_t count = numbers_.shift.size();
  check_count("projection", count * kCells, numbers_.projection.size());
  if (!numbers_.maps.empty() || count > 0) {
    check_count("maps", (1 + 2 * count) * kMaps * kCells, numbers_.maps.size());
  }
  if (!(numbers_.offset > 0)) fail("offset", "a number above 0", std::to_string(numbers_.offset));
  if (numbers_.masked && !(numbers_.dark < numbers_.bright)) {
    fail("bright", "a number above dark", std::to_string(numbers_.bright));
  }
  for (int k = 0; k < kScales; ++k) {
    if (sides[k] == 0 || sides[k] > size) {
      fail("sides", "sides from 1 to " + std::to_string(size), std::to_string(sides[k]));
    }
    // Half-pixel centres, as images are resized.
    for (std::size_t i = 0; i < sides[k]; ++i) {
      const double ratio = static_cast<double>(kGrid) / static_cast<double>(sides[k]);
      const double centre = std::clamp((static_cast<double>(i) + 0.5) * ratio - 0.5, 0.0,
                                       static_cast<double>(kGrid - 1));
      const auto low = static_cast<std::uint32_t>(centre);
      taps_[k].low.push_back(low);
      taps_[k].high.push_back(std::min<std::uint32_t>(low + 1, kGrid - 1));
      taps_[k].fraction.push_back(static_cast<float>(centre - low));
    }
  }
}

void Prior::thumbnail(const float* input, float* out) const {
  const std::size_t cell = size_ / kGrid;
  float* rows = scratch(kGrid * size_);
  SCRD_PICK(sum_rows)(input, size_, cell / 4, cell / 2, rows);
  SCRD_PICK(sum_cells)(rows, kCells, cell, 1.0f / static_cast<float>(6 * cell), out);
}

// grids: the gains and the shifts of the scales, (kCells) each, where first what is predicted lies;
// the components behind them.
void Prior::gain_and_shift(const float* thumbnail, float* grids) const {
  const bool mapped = !numbers_.maps.empty();
  if (mapped) {
    const std::size_t count = numbers_.shift.size();
    float* z = grids + kMaps * kCells;
    const auto run = SCRD_PICK(describe);
    run(numbers_.projection.data(), numbers_.shift.data(), count, thumbnail, z);
    SCRD_PICK(predict)(numbers_.maps.data(), z, count, grids);
  }
  for (std::size_t cell = 0; cell < kCells; ++cell) {
    float seen = 1;
    if (numbers_.masked) {
      const std::size_t y = cell / kGrid, x = cell % kGrid;
      float brightest = thumbnail[cell];
      for (std::size_t v = y - (y > 0); v <= std::min(y + 1, kGrid - 1); ++v) {
        for (std::size_t u = x - (x > 0); u <= std::min(x + 1, kGrid - 1); ++u) {
          brightest = std::max(brightest, thumbnail[v * kGrid + u]);
        }
      }
      seen = (brightest - numbers_.dark) / (numbers_.bright - numbers_.dark);
      seen = std::clamp(seen, 0.0f, 1.0f);
    }
    float* at = grids + cell;
    for (int k = 0; k < kScales; ++k, at += kCells) {
      float gain = seen, shift = 0;
      if (mapped) {
        const float spread = std::exp(at[kScales * kCells]);
        gain = seen * (1 + numbers_.offset) / (spread + numbers_.offset);
        shift = seen * numbers_.level[k] - gain * at[0];
      }
      at[0] = gain, at[kScales * kCells] = shift;
    }
  }
}

void Prior::operator()(const float* thumbnail, const std::array<const float*, kScales>& distances,
                       const std::array<float*, kScales>& out) const {
  const std::size_t widest = *std::max_element(sides_.begin(), sides_.end());
  float* grids = scratch(kMaps * kCells + std::max(2 * kGrid * widest, numbers_.shift.size()));
  float* gain = grids + kMaps * kCells;
  float* shift = gain + kGrid * widest;
  gain_and_shift(thumbnail, grids);
  const auto expand = SCRD_PICK(expand_columns);
  const auto apply = SCRD_PICK(apply_row);
  for (int k = 0; k < kScales; ++k) {
    const Taps& taps = taps_[k];
    const std::size_t side = sides_[k];
    expand(grids + k * kCells, taps.low.data(), taps.high.data(), taps.fraction.data(), side, gain);
    expand(grids + (kScales + k) * kCells, taps.low.data(), taps.high.data(), taps.fraction.data(),
           side, shift);
    for (std::size_t y = 0; y < side; ++y) {
      const std::size_t low = taps.low[y] * side, high = taps.high[y] * side;
      apply(gain + low, gain + high, shift + low, shift + high, taps.fraction[y], side,
            distances[k] + y * side, out[k] + y * side);
    }
  }
}

}  // namespace scrd
