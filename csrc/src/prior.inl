// The arithmetic of prior for one instruction set; see each_isa.hpp. Needs prior.hpp.

// The sums of three channels and two rows of each of 16 cells, `step` rows apart from row `first`
// on: out (16, size). size: a multiple of 32.
static void sum_rows(const float* input, std::size_t size, std::size_t first, std::size_t step,
                     float* out) {
  for (std::size_t cell = 0; cell < Prior::kGrid; ++cell, out += size) {
    const float* row = input + (first + 2 * cell * step) * size;
    for (std::size_t x = 0; x < size; x += SCRD_WIDTH) {
      f32 total{};
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const float* at = row + channel * size * size + x;
        total += load_f32(at) + load_f32(at + step * size);
      }
      store(out + x, total);
    }
  }
}

// out (count): a sum of each `width` neighbours, times factor.
static void sum_cells(const float* from, std::size_t count, std::size_t width, float factor,
                      float* out) {
  for (std::size_t i = 0; i < count; ++i, from += width) {
    f32 sums{};
    std::size_t x = 0;
    for (; x + SCRD_WIDTH <= width; x += SCRD_WIDTH) sums += load_f32(from + x);
    float total = x > 0 ? sum_of(sums) : 0;
    for (; x < width; ++x) total += from[x];
    out[i] = total * factor;
  }
}

// z (count) = clip(projection thumbnail + shift, -3, 3).
static void describe(const float* projection, const float* shift, std::size_t count,
                     const float* thumbnail, float* z) {
  for (std::size_t k = 0; k < count; ++k, projection += Prior::kCells) {
    f32 sums{};
    for (std::size_t x = 0; x < Prior::kCells; x += SCRD_WIDTH) {
      sums += load_f32(projection + x) * load_f32(thumbnail + x);
    }
    const float value = sum_of(sums) + shift[k];
    z[k] = value < -3 ? -3.0f : value > 3 ? 3.0f : value;
  }
}

// out (kMaps, kCells) = maps_0 + sum_k z_k maps_(1 + k) + (z_k^2 - 1) maps_(1 + count + k).
static void predict(const float* maps, const float* z, std::size_t count, float* out) {
  constexpr std::size_t kRow = Prior::kMaps * Prior::kCells, kStep = 4 * SCRD_WIDTH;
  static_assert(kRow % kStep == 0, "no rest");
  for (std::size_t x = 0; x < kRow; x += kStep) {
    f32 sums[4];
    for (int v = 0; v < 4; ++v) sums[v] = load_f32(maps + x + v * SCRD_WIDTH);
    const float* linear = maps + kRow + x;
    const float* square = linear + count * kRow;
    for (std::size_t k = 0; k < count; ++k, linear += kRow, square += kRow) {
      const float a = z[k], b = z[k] * z[k] - 1;
      for (int v = 0; v < 4; ++v) {
        sums[v] += a * load_f32(linear + v * SCRD_WIDTH) + b * load_f32(square + v * SCRD_WIDTH);
      }
    }
    for (int v = 0; v < 4; ++v) store(out + x + v * SCRD_WIDTH, sums[v]);
  }
}

// Rows of a grid (kGrid, kGrid) at the columns of a scale: out (kGrid, side).
static void expand_columns(const float* grid, const std::uint32_t* low, const std::uint32_t* high,
                           const float* fraction, std::size_t side, float* out) {
  for (std::size_t row = 0; row < Prior::kGrid; ++row, grid += Prior::kGrid, out += side) {
    for (std::size_t x = 0; x < side; ++x) {
      out[x] = grid[low[x]] + fraction[x] * (grid[high[x]] - grid[low[x]]);
    }
  }
}

// One row of a scale: out = gain distance + shift, these between two rows of their grids.
static void apply_row(const float* gain_low, const float* gain_high, const float* shift_low,
                      const float* shift_high, float fraction, std::size_t side,
                      const float* distance, float* out) {
  std::size_t x = 0;
  for (; x + SCRD_WIDTH <= side; x += SCRD_WIDTH) {
    const f32 gain = load_f32(gain_low + x), shift = load_f32(shift_low + x);
    const f32 g = gain + fraction * (load_f32(gain_high + x) - gain);
    const f32 b = shift + fraction * (load_f32(shift_high + x) - shift);
    store(out + x, g * load_f32(distance + x) + b);
  }
  for (; x < side; ++x) {
    const float g = gain_low[x] + fraction * (gain_high[x] - gain_low[x]);
    const float b = shift_low[x] + fraction * (shift_high[x] - shift_low[x]);
    out[x] = g * distance[x] + b;
  }
}
