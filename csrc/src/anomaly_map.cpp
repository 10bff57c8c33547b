#include "scrd/anomaly_map.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <string>

#include "anomaly_map_types.hpp"
#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"

#define SCRD_BODY "anomaly_map.inl"
#include "each_isa.hpp"

namespace scrd {
namespace {

constexpr std::size_t kLargest = 4096;  // side of a map: no product of sizes overflows
constexpr std::size_t kRowBlock = 32;   // rows of the map in a task
static_assert(Tail::kTile % kTileSums == 0 && kRowBlock % kTileSums == 0,
              "the rows of a task are some that multiply_tile takes");
// Features in a task of the distances, at least: large enough that a run of neighbouring pixels
// fills many cache lines (32768: 189 us, 131072: 134 us for 1.8 million).
constexpr std::size_t kTaskFeatures = 131072;
// Pixels of a task are a multiple of it, two of the widest vectors, so that what is left over is
// the same few pixels in any division: no bit depends on it.
constexpr std::size_t kStep = 32;

std::size_t padded(std::size_t side) {
  return (side + Tail::kTile - 1) / Tail::kTile * Tail::kTile;
}

std::string shape_text(const FeatureView& f) {
  return "(" + std::to_string(f.n) + ", " + std::to_string(f.channels) + ", " +
         std::to_string(f.height) + ", " + std::to_string(f.width) + ")";
}

std::string indexed(const char* name, std::size_t k) {
  return std::string(name) + "[" + std::to_string(k) + "]";
}

// Grows and is kept: no allocation once a thread has seen the largest batch.
float* scratch(std::size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

template <typename T>
float value_at(const FeatureView& f, std::size_t i, std::size_t c, std::size_t y, std::size_t x) {
  const std::size_t index[4] = {i, c, y, x};
  std::ptrdiff_t offset = 0;
  for (int d = 0; d < 4; ++d) offset += static_cast<std::ptrdiff_t>(index[d]) * f.strides[d];
  return plain::feature(static_cast<const T*>(f.data)[offset]);
}

// Why no distance can be computed at a pixel of one image; empty where it can.
std::string defect(const FeatureView& f, std::size_t i, std::size_t y, std::size_t x) {
  double squares = 0;
  for (std::size_t c = 0; c < f.channels; ++c) {
    const double value = f.dtype == DType::bf16 ? value_at<std::uint16_t>(f, i, c, y, x)
                                                : value_at<float>(f, i, c, y, x);
    if (!std::isfinite(value)) return "one that is not";
    squares += value * value;
  }
  // Float32 ends at 3.403e38; its sums are off by less than the rest.
  return squares < 3.4e38 ? "" : "values whose sum of squares overflows";
}

// Says which of the two is to blame for a distance that is not finite.
void check_finite(const FeatureView& teacher, const FeatureView& student, std::size_t k,
                  const float* distances) {
  const std::size_t count = teacher.n * teacher.height * teacher.width;
  float zero = 0;  // 0 * x is 0 for every finite x and NaN for the others
  for (std::size_t i = 0; i < count; ++i) zero += 0 * distances[i];
  if (zero == 0) return;
  std::size_t i = 0;
  while (std::isfinite(distances[i])) ++i;
  const std::size_t x = i % teacher.width, y = i / teacher.width % teacher.height;
  const std::size_t image = i / (teacher.width * teacher.height);
  std::string name = indexed("teacher", k), got = defect(teacher, image, y, x);
  if (got.empty()) name = indexed("student", k), got = defect(student, image, y, x);
  fail<NotFiniteError>(name, "finite values",
                       got + ", at row " + std::to_string(y) + ", column " + std::to_string(x) +
                           " of image " + std::to_string(image));
}

// std::to_string writes "-nan" where the sign bit is set.
std::string number(float value) { return std::isnan(value) ? "nan" : std::to_string(value); }

void check_weights(const float* weights, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const float* w = weights + i * kScales;
    const float sum = w[0] + w[1] + w[2];
    // Written so that a NaN fails it. A bfloat16 softmax sums to one within 3 roundings of 2^-9.
    if (!(std::fabs(sum - 1) <= 1e-2f && w[0] >= 0 && w[1] >= 0 && w[2] >= 0)) {
      fail("scale_weights", "three weights from 0 that sum to 1",
           number(w[0]) + ", " + number(w[1]) + ", " + number(w[2]) + " for image " +
               std::to_string(i));
    }
  }
}

}  // namespace

BandMatrix upsample_blur_band(std::size_t size, std::size_t side, double sigma) {
  if (size < 1 || size > kLargest) {
    fail("size", "1 to " + std::to_string(kLargest), std::to_string(size));
  }
  if (side < 1 || side > size) {
    fail("side", "1 to " + std::to_string(size), std::to_string(side));
  }
  if (!(sigma >= 0 && sigma <= static_cast<double>(size))) {
    fail("sigma", "0 to " + std::to_string(size), std::to_string(sigma));
  }
  // SciPy's Gaussian: radius int(4 sigma + 0.5), normalised, edge pixels repeated by reflection.
  const int radius = static_cast<int>(4 * sigma + 0.5);
  std::vector<double> kernel(2 * radius + 1, 1.0);
  double total = 0;
  for (int d = -radius; d <= radius; ++d) {
    // d / sigma first: the square of a tiny sigma would be 0.
    if (sigma > 0) kernel[d + radius] = std::exp(-0.5 * (d / sigma) * (d / sigma));
    total += kernel[d + radius];
  }
  const int n = static_cast<int>(size);
  std::vector<double> dense(size * side, 0.0);
  for (int i = 0; i < n; ++i) {
    for (int d = -radius; d <= radius; ++d) {
      int j = (i + d) % (2 * n);
      if (j < 0) j += 2 * n;
      if (j >= n) j = 2 * n - 1 - j;
      const double centre = size > 1 ? j * (static_cast<double>(side - 1) / (n - 1)) : 0.0;
      const std::size_t low =
          std::min(static_cast<std::size_t>(centre), side > 1 ? side - 2 : std::size_t{0});
      const double fraction = centre - static_cast<double>(low);
      const double g = kernel[d + radius] / total;
      dense[i * side + low] += g * (1 - fraction);
      if (fraction > 0) dense[i * side + low + 1] += g * fraction;
    }
  }
  BandMatrix band{size, side, 0, std::vector<std::size_t>(size), {}, std::vector<float>(side)};
  std::vector<std::size_t> last(size);
  for (std::size_t i = 0; i < size; ++i) {
    const double* row = dense.data() + i * side;
    std::size_t first = 0, end = side;
    while (first + 1 < end && row[first] == 0) ++first;
    while (end > first + 1 && row[end - 1] == 0) --end;
    band.first[i] = first;
    band.width = std::max(band.width, end - first);
  }
  band.values.assign(size * band.width, 0.0f);
  for (std::size_t i = 0; i < size; ++i) {
    band.first[i] = std::min(band.first[i], side - band.width);
    for (std::size_t k = 0; k < band.width; ++k) {
      band.values[i * band.width + k] = static_cast<float>(dense[i * side + band.first[i] + k]);
    }
  }
  for (std::size_t j = 0; j < side; ++j) {
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += dense[i * side + j];
    band.column_means[j] = static_cast<float>(sum / static_cast<double>(size));
  }
  return band;
}

Tail::Tail(std::size_t size, std::array<std::size_t, kScales> sides, double sigma, bool weighted,
           std::shared_ptr<const Prior> prior)
    : size_(size), sides_(sides), weighted_(weighted), prior_(std::move(prior)) {
  if (size == 0 || size % kTile != 0) {
    fail("size", "a multiple of " + std::to_string(kTile), std::to_string(size));
  }
  if (prior_ && (prior_->size() != size || prior_->sides() != sides)) {
    fail("prior", "one for an input of " + std::to_string(size) + " and these sides",
         "one for " + std::to_string(prior_->size()));
  }
  for (int k = 0; k < kScales; ++k) bands_[k] = upsample_blur_band(size, sides[k], sigma);
  for (std::size_t start = 0; start < size; start += kTile) {
    Tile tile;
    std::size_t offset = 0;
    for (const BandMatrix& band : bands_) {
      for (std::size_t j = 0; j < band.side; ++j) {
        float column[kTile] = {};
        bool reached = false;
        for (std::size_t i = 0; i < kTile; ++i) {
          const std::size_t first = band.first[start + i];
          if (j < first || j >= first + band.width) continue;
          column[i] = band.values[(start + i) * band.width + j - first];
          reached = reached || column[i] != 0;
        }
        if (!reached) continue;
        tile.rows.push_back(offset + j);
        tile.values.insert(tile.values.end(), column, column + kTile);
      }
      offset += padded(band.side);
    }
    tiles_.push_back(std::move(tile));
  }
}

std::size_t Tail::map_values(std::size_t n) const {
  const std::size_t pixels = size_ * size_;
  if (n > PTRDIFF_MAX / sizeof(float) / pixels) throw std::bad_alloc();
  return n * pixels;
}

// The distances of n images as the prior judges them, in memory of this thread.
std::array<const float*, kScales> Tail::judge(const std::array<const float*, kScales>& distances,
                                              const float* thumbnails, std::size_t n) const {
  thread_local std::vector<float> memory;  // as scratch, which the map's tasks use meanwhile
  std::size_t values = 0;
  for (std::size_t side : sides_) values += side * side;
  if (memory.size() < n * values) memory.resize(n * values);
  std::array<const float*, kScales> judged{};
  for (std::size_t i = 0; i < n; ++i) {
    std::array<const float*, kScales> of_image;
    std::array<float*, kScales> out;
    float* scale = memory.data();
    for (int k = 0; k < kScales; ++k) {
      const std::size_t pixels = sides_[k] * sides_[k];
      judged[k] = scale;
      of_image[k] = distances[k] + i * pixels, out[k] = scale + i * pixels;
      scale += n * pixels;
    }
    (*prior_)(thumbnails + i * Prior::kCells, of_image, out);
  }
  return judged;
}

void Tail::operator()(const std::array<const float*, kScales>& given, const float* thumbnails,
                      const float* scale_weights, std::size_t n, float* map, float* mean,
                      float* max) const {
  if (weighted_) check_weights(scale_weights, n);
  const std::array<const float*, kScales> distances = prior_ ? judge(given, thumbnails, n) : given;
  const auto weight = [&](std::size_t image, int k) {
    return weighted_ ? scale_weights[image * kScales + k] : 1.0f;
  };
  for (std::size_t i = 0; i < n; ++i) {
    double total = 0;
    for (int k = 0; k < kScales; ++k) {
      const std::size_t side = sides_[k];
      const float* u = bands_[k].column_means.data();
      const float* m = distances[k] + i * side * side;
      double sum = 0;
      for (std::size_t y = 0; y < side; ++y, m += side) {
        float row = 0;
        for (std::size_t x = 0; x < side; ++x) row += m[x] * u[x];
        sum += static_cast<double>(row) * u[y];
      }
      if (!std::isfinite(sum)) {
        fail<NotFiniteError>(indexed("distances", k), "finite values",
                             "one that is not, in image " + std::to_string(i));
      }
      total += weight(i, k) * sum;
    }
    mean[i] = static_cast<float>(total);
  }
  if (map == nullptr && max == nullptr) return;

  std::size_t total_side = 0, matrix_floats = 0;
  for (std::size_t side : sides_) {
    total_side += padded(side);
    matrix_floats += side * padded(side);
  }
  const std::size_t blocks = (size_ + kRowBlock - 1) / kRowBlock;
  std::vector<float> largest(n * blocks);
  const auto upsample = SCRD_PICK(upsample_rows);
  const auto multiply = SCRD_PICK(multiply_tile);
  // A map of 256 x 256 takes a thread 35 us; waking another one costs about 55.
  const bool wake = n * size_ * size_ > 4 * 65536;
  shared_pool()->for_each(
      n * blocks,
      [&](std::size_t task) {
        const std::size_t image = task / blocks, begin = task % blocks * kRowBlock;
        const std::size_t end = std::min(begin + kRowBlock, size_);
        float* t = scratch(kRowBlock * total_side + matrix_floats);
        float* matrix = t + kRowBlock * total_side;
        std::size_t offset = 0;
        for (int k = 0; k < kScales; ++k) {
          const std::size_t side = sides_[k], stride = padded(side);
          const float* m = distances[k] + image * side * side;
          const std::size_t top = bands_[k].first[begin];
          const std::size_t bottom = bands_[k].first[end - 1] + bands_[k].width;
          const float w = weight(image, k);
          for (std::size_t y = top; y < bottom; ++y) {
            for (std::size_t x = 0; x < side; ++x) matrix[y * stride + x] = w * m[y * side + x];
            std::fill(matrix + y * stride + side, matrix + (y + 1) * stride, 0.0f);
          }
          upsample(bands_[k], matrix, stride, begin, end, t + offset, total_side);
          offset += stride;
        }
        float most = -std::numeric_limits<float>::infinity();
        float* rows = map == nullptr ? nullptr : map + (image * size_ + begin) * size_;
        for (std::size_t column = 0; column < tiles_.size(); ++column) {
          const Tile& tile = tiles_[column];
          most = std::max(most, multiply(t, total_side, end - begin, tile.rows.size(),
                                         tile.rows.data(), tile.values.data(),
                                         rows == nullptr ? nullptr : rows + column * kTile, size_));
        }
        largest[task] = most;
      },
      wake);
  if (max == nullptr) return;
  for (std::size_t i = 0; i < n; ++i) {
    max[i] = *std::max_element(&largest[i * blocks], &largest[i * blocks] + blocks);
  }
}

void cosine_distances(const std::array<FeatureView, kScales>& teacher,
                      const std::array<FeatureView, kScales>& student,
                      const std::array<float*, kScales>& distances, bool check) {
  struct Part {
    std::size_t block, blocks, first;  // pixels in a task, tasks of an image, first task
  };
  std::array<Part, kScales> parts;
  const std::shared_ptr<ThreadPool> pool = shared_pool();
  std::size_t tasks = 0;
  const std::size_t n = teacher[0].n;
  for (std::size_t k = 0; k < kScales; ++k) {
    const FeatureView &t = teacher[k], &s = student[k];
    const bool supported = t.dtype == DType::f32 || t.dtype == DType::bf16;
    if (!supported) fail(indexed("teacher", k), "dtype float32 or bfloat16", "another");
    if (t.n == 0 || t.channels == 0 || t.height == 0 || t.width == 0) {
      fail(indexed("teacher", k), "(N, C, h, w) without a zero", shape_text(t));
    }
    if (t.n != n) {
      fail(indexed("teacher", k), "a batch of " + std::to_string(n) + " as at the first scale",
           std::to_string(t.n));
    }
    if (s.n != t.n || s.channels != t.channels || s.height != t.height || s.width != t.width) {
      fail(indexed("student", k), shape_text(t), shape_text(s));
    }
    if (s.dtype != t.dtype) fail(indexed("student", k), "the teacher's dtype", "another");
    const std::size_t pixels = t.height * t.width;
    // Each thread a share of each scale, whose runs are as long as can be (a tenth faster).
    const std::size_t share = n * pixels / static_cast<std::size_t>(pool->threads());
    const std::size_t wanted = std::max({kTaskFeatures / t.channels, share, kStep});
    const std::size_t block = std::min((wanted + kStep - 1) / kStep * kStep, pixels);
    parts[k] = {block, (pixels + block - 1) / block, tasks};
    tasks += n * parts[k].blocks;
  }
  const auto run = SCRD_PICK(distances);
  pool->for_each(tasks, [&](std::size_t task) {
    const int k = task >= parts[2].first ? 2 : task >= parts[1].first ? 1 : 0;
    const std::size_t index = task - parts[k].first;
    const std::size_t image = index / parts[k].blocks;
    const std::size_t begin = index % parts[k].blocks * parts[k].block;
    const std::size_t pixels = teacher[k].height * teacher[k].width;
    const std::size_t end = std::min(begin + parts[k].block, pixels);
    run(teacher[k], student[k], image, begin, end, distances[k] + image * pixels,
        scratch(3 * parts[k].block));
  });
  for (std::size_t k = 0; check && k < kScales; ++k) {
    check_finite(teacher[k], student[k], k, distances[k]);
  }
}

void anomaly_map(const Tail& tail, const std::array<FeatureView, kScales>& teacher,
                 const std::array<FeatureView, kScales>& student, const float* thumbnails,
                 const float* scale_weights, float* map, float* mean, float* max) {
  std::array<std::vector<float>, kScales> memory;
  std::array<float*, kScales> distances;
  std::array<const float*, kScales> inputs;
  for (std::size_t k = 0; k < kScales; ++k) {
    const FeatureView& t = teacher[k];
    const std::size_t side = tail.sides()[k];
    if (t.height != side || t.width != side) {
      const std::string text = std::to_string(side);
      fail(indexed("teacher", k), "(N, C, " + text + ", " + text + ")", shape_text(t));
    }
    memory[k].resize(t.n * side * side);
    inputs[k] = distances[k] = memory[k].data();
  }
  cosine_distances(teacher, student, distances);
  tail(inputs, thumbnails, scale_weights, teacher[0].n, map, mean, max);
}

}  // namespace scrd
