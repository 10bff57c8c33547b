#include "scrd/add_noise.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"

namespace scrd {
namespace {

constexpr std::size_t kTaskPoints = 16 * NoiseField::kBlock;

// Whether two elements may share memory. Of strides that interleave without a clash it says yes;
// slices and permutations of an array do not interleave.
bool overlaps(const std::ptrdiff_t strides[4], const std::size_t sizes[4]) {
  std::pair<double, double> steps[4];  // stride and last index; doubles do not overflow
  for (int d = 0; d < 4; ++d) {
    if (sizes[d] == 0) return false;
    steps[d] = {std::fabs(static_cast<double>(strides[d])), static_cast<double>(sizes[d] - 1)};
  }
  std::sort(steps, steps + 4);
  double reach = 0;  // of the smaller steps together
  for (const auto& [stride, last] : steps) {
    if (last > 0 && stride <= reach) return true;
    reach += stride * last;
  }
  return false;
}

void check(const Box& box, std::size_t image, std::size_t height, std::size_t width) {
  const auto h = static_cast<std::int64_t>(height), w = static_cast<std::int64_t>(width);
  if (box.top >= 0 && box.left >= 0 && box.height >= 1 && box.width >= 1 && box.height <= h &&
      box.width <= w && box.top <= h - box.height && box.left <= w - box.width) {
    return;
  }
  fail("boxes", "boxes inside " + std::to_string(height) + " x " + std::to_string(width),
       std::to_string(box.top) + ", " + std::to_string(box.left) + ", " +
           std::to_string(box.height) + ", " + std::to_string(box.width) + " for image " +
           std::to_string(image));
}

}  // namespace

void add_noise(float* images, const std::ptrdiff_t strides[4], std::size_t n, std::size_t channels,
               std::size_t height, std::size_t width, const Box* boxes, const std::int64_t* seeds,
               const double* strengths, const Octaves& octaves) {
  const std::size_t sizes[4] = {n, channels, height, width};
  if (overlaps(strides, sizes)) {
    fail("images", "elements that do not share memory", "strides that let them");
  }
  std::size_t largest = channels;
  std::vector<std::pair<std::size_t, std::size_t>> tasks;  // image, first point of its box
  for (std::size_t i = 0; i < n; ++i) {
    check(boxes[i], i, height, width);
    if (!std::isfinite(strengths[i])) {
      fail<NotFiniteError>("strength", "finite numbers",
                           "one that is not, for image " + std::to_string(i));
    }
    const auto h = static_cast<std::size_t>(boxes[i].height);
    const auto w = static_cast<std::size_t>(boxes[i].width);
    largest = std::max({largest, h, w});
    for (std::size_t first = 0; first < channels * h * w; first += kTaskPoints) {
      tasks.emplace_back(i, first);
    }
  }
  const NoiseField field(seeds, n, largest, octaves);
  shared_pool()->for_each(tasks.size(), [&](std::size_t task) {
    const auto [i, first] = tasks[task];
    const Box& box = boxes[i];
    const auto h = static_cast<std::size_t>(box.height), w = static_cast<std::size_t>(box.width);
    const std::size_t end = std::min(first + kTaskPoints, channels * h * w);
    float* corner = images + static_cast<std::ptrdiff_t>(i) * strides[0] + box.top * strides[2] +
                    box.left * strides[3];
    std::size_t x = first % w, y = first / w % h, c = first / w / h;
    for (std::size_t at = first; at < end; at += NoiseField::kBlock) {
      const std::size_t count = std::min(NoiseField::kBlock, end - at);
      float values[NoiseField::kBlock];
      field(i, at, count, h, w, values);
      for (std::size_t k = 0; k < count;) {
        float* row = corner + static_cast<std::ptrdiff_t>(c) * strides[1] +
                     static_cast<std::ptrdiff_t>(y) * strides[2];
        const std::size_t row_end = std::min(count, k + w - x);
        for (; k < row_end; ++k, ++x) {
          row[static_cast<std::ptrdiff_t>(x) * strides[3]] +=
              static_cast<float>(strengths[i] * values[k]);
        }
        if (x < w) break;  // the block ends inside the row
        x = 0;
        if (++y == h) y = 0, ++c;
      }
    }
  });
}

}  // namespace scrd
