// Priors against their equations in double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "scrd/anomaly_map.hpp"
#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/prior.hpp"

namespace scrd {
namespace {

using namespace test;

constexpr std::size_t kGrid = Prior::kGrid, kCells = Prior::kCells;

std::vector<float> normal_values(std::size_t count, float deviation, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = draw(generator);
  return values;
}

Prior::Numbers numbers(std::size_t components, bool masked) {
  Prior::Numbers made;
  made.projection = normal_values(components * kCells, 0.05f, 1);
  made.shift = normal_values(components, 1, 2);
  made.maps = normal_values((1 + 2 * components) * Prior::kMaps * kCells, 0.1f, 3);
  made.level = {0.1f, 0.2f, 0.3f};
  made.masked = masked, made.dark = -0.5f, made.bright = 0.75f;
  return made;
}

// A grid between its cells' centres.
double between(const std::vector<double>& grid, std::size_t y, std::size_t x, std::size_t side) {
  const auto tap = [&](std::size_t i, std::size_t& low, std::size_t& high) {
    const double centre = std::clamp((i + 0.5) * kGrid / side - 0.5, 0.0, kGrid - 1.0);
    low = static_cast<std::size_t>(centre), high = std::min(low + 1, kGrid - 1);
    return centre - static_cast<double>(low);
  };
  std::size_t y0, y1, x0, x1;
  const double v = tap(y, y0, y1), u = tap(x, x0, x1);
  const auto row = [&](std::size_t r) {
    return (1 - u) * grid[r * kGrid + x0] + u * grid[r * kGrid + x1];
  };
  return (1 - v) * row(y0) + v * row(y1);
}

std::vector<double> naive(const Prior::Numbers& n, const std::vector<float>& thumbnail,
                          const std::vector<float>& distance, std::size_t k, std::size_t side) {
  const std::size_t count = n.shift.size();
  std::vector<double> phi{1};
  for (std::size_t c = 0; c < count; ++c) {
    double z = n.shift[c];
    for (std::size_t i = 0; i < kCells; ++i) z += n.projection[c * kCells + i] * thumbnail[i];
    phi.push_back(std::clamp(z, -3.0, 3.0));
  }
  for (std::size_t c = 0; c < count; ++c) phi.push_back(phi[1 + c] * phi[1 + c] - 1);
  std::vector<double> gain(kCells), shift(kCells);
  for (std::size_t i = 0; i < kCells; ++i) {
    double mean = 0, log_spread = 0, seen = 1;
    for (std::size_t j = 0; j < phi.size(); ++j) {
      mean += phi[j] * n.maps[(j * Prior::kMaps + k) * kCells + i];
      log_spread += phi[j] * n.maps[(j * Prior::kMaps + kScales + k) * kCells + i];
    }
    if (n.masked) {
      const int y = static_cast<int>(i / kGrid), x = static_cast<int>(i % kGrid);
      float brightest = thumbnail[i];
      for (int v = std::max(y - 1, 0); v <= std::min(y + 1, 15); ++v) {
        for (int u = std::max(x - 1, 0); u <= std::min(x + 1, 15); ++u) {
          brightest = std::max(brightest, thumbnail[v * 16 + u]);
        }
      }
      seen = std::clamp<double>((brightest - n.dark) / (n.bright - n.dark), 0, 1);
    }
    gain[i] = seen * (1 + n.offset) / (std::exp(log_spread) + n.offset);
    shift[i] = seen * n.level[k] - gain[i] * mean;
  }
  std::vector<double> out;
  for (std::size_t y = 0; y < side; ++y) {
    for (std::size_t x = 0; x < side; ++x) {
      out.push_back(between(gain, y, x, side) * distance[y * side + x] +
                    between(shift, y, x, side));
    }
  }
  return out;
}

TEST(prior_is_its_equations) {
  for (const Isa isa : available_isas()) {
    const UseIsa use(isa);
    for (const std::size_t size : {32u, 96u, 128u, 512u}) {
      for (const std::size_t components : {0u, 1u, 17u}) {
        const std::array<std::size_t, kScales> sides{size / 4, size / 8, size / 16};
        const Prior::Numbers made = numbers(components, components == 1);
        const Prior prior(size, sides, made);
        const std::vector<float> input = normal_values(3 * size * size, 1, 4);
        std::vector<float> thumbnail(kCells);
        prior.thumbnail(input.data(), thumbnail.data());
        const std::size_t cell = size / kGrid;
        for (std::size_t i = 0; i < kCells; ++i) {
          double sum = 0;
          for (std::size_t c = 0; c < 3; ++c) {
            for (std::size_t line = 0; line < 2; ++line) {
              const std::size_t y = i / kGrid * cell + cell / 4 + line * (cell / 2);
              for (std::size_t x = 0; x < cell; ++x) {
                sum += input[(c * size + y) * size + i % kGrid * cell + x];
              }
            }
          }
          CHECK(std::fabs(thumbnail[i] - sum / (6.0 * cell)) < 1e-6);
        }
        std::array<std::vector<float>, kScales> values;
        std::array<const float*, kScales> in;
        std::array<float*, kScales> out;
        for (int k = 0; k < kScales; ++k) {
          values[k] = normal_values(sides[k] * sides[k], 0.3f, 10 + k);
          in[k] = out[k] = values[k].data();  // in place
        }
        const std::array<std::vector<float>, kScales> before = values;
        prior(thumbnail.data(), in, out);
        for (int k = 0; k < kScales; ++k) {
          const std::vector<double> wanted = naive(made, thumbnail, before[k], k, sides[k]);
          for (std::size_t i = 0; i < wanted.size(); ++i) {
            CHECK(std::fabs(values[k][i] - wanted[i]) < 5e-6 * (1 + std::fabs(wanted[i])));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace scrd
