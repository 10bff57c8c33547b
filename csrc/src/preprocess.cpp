#include "scrd/preprocess.hpp"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "preprocess_types.hpp"
#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"

#define SCRD_BODY "preprocess.inl"
#include "each_isa.hpp"

namespace scrd {
namespace {

constexpr std::size_t kRowBlock = 16;  // rows of the output in a task
// Of rows that are longer than this many times the output's only the columns that are used are
// blended: two grey pixels for each of the output are copied in the time in which twelve are
// blended, two colour pixels blended in the time of four (AVX2) or five (AVX-512) in a whole row.
constexpr std::size_t kAllGreyColumns = 12, kAllColourColumns = 5;
constexpr std::size_t kMostSize = 65536;
// Blended and three times the written values that take 0.14 ms with AVX-512: less is done before
// a sleeping thread could help, and waking it costs 55 us (one 1024 x 1024 colour image: 76 us
// without, 132 us with).
constexpr std::size_t kWorthWaking = 2500000;
constexpr std::size_t kFiniteBlock = 65536;  // values in a task of check_finite and all_inside

// How an axis of `length` becomes one of `size`, computed as the reference does.
struct Taps {
  std::vector<std::size_t> low;        // (size)
  std::vector<float> fraction;         // (size, padded)
  std::vector<std::int32_t> position;  // (size, padded): low

  Taps(std::size_t length, std::size_t size)
      : low(size), fraction(size + kPad), position(size + kPad) {
    const double ratio = static_cast<double>(length) / static_cast<double>(size);
    const double last = static_cast<double>(length - 1);
    for (std::size_t i = 0; i < size; ++i) {
      const double centre = std::clamp((static_cast<double>(i) + 0.5) * ratio - 0.5, 0.0, last);
      low[i] = static_cast<std::size_t>(centre);
      fraction[i] = static_cast<float>(centre - std::floor(centre));
      position[i] = static_cast<std::int32_t>(std::min<std::size_t>(low[i], INT32_MAX));
    }
  }
};

double full_scale(DType dtype) {
  return dtype == DType::u8 ? 255.0 : dtype == DType::u16 ? 65535.0 : 1.0;
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f64; }

// Grows and is kept; aligned to a cache line.
char* scratch(std::size_t bytes) {
  thread_local std::vector<char> memory;
  if (memory.size() < bytes + 64) memory.resize(bytes + 64);
  return memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
}

std::size_t lines(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

template <typename Out, typename Rows>
void preprocess_as(const ImageView* images, std::size_t n, const PixelSpec& spec, Out* out,
                   Rows rows) {
  const std::size_t size = spec.size, image_values = input_values(1, spec);
  std::vector<std::int32_t> even(size + kPad);  // where the columns are in a line of pairs
  for (std::size_t i = 0; i < size; ++i) even[i] = static_cast<std::int32_t>(2 * i);
  std::map<std::size_t, Taps> taps;
  std::vector<RowTask> tasks(n);
  std::size_t work = n * 3 * image_values;
  for (std::size_t i = 0; i < n; ++i) {
    const ImageView& image = images[i];
    RowTask& task = tasks[i];
    const Taps& vertical = taps.try_emplace(image.height, image.height, size).first->second;
    const Taps& horizontal = taps.try_emplace(image.width, image.width, size).first->second;
    const auto item = static_cast<std::ptrdiff_t>(item_size(image.dtype));
    const auto channels = static_cast<std::ptrdiff_t>(image.channels);
    task.image = &image;
    task.size = size;
    task.row_low = vertical.low.data();
    task.row_fraction = vertical.fraction.data();
    task.low = horizontal.low.data();
    task.fraction = horizontal.fraction.data();
    task.adjacent = (image.width == 1 || image.column_stride == channels * item) &&
                    (channels == 1 || image.channel_stride == item);
    const std::size_t all = channels == 1 ? kAllGreyColumns : kAllColourColumns;
    task.pairs = image.width > (task.adjacent ? all : 2) * size;
    task.position = task.pairs ? even.data() : horizontal.position.data();
    task.resized = image.width != size;
    task.columns = task.pairs ? 2 * size : image.width;
    work += size * task.columns * image.channels;
    for (std::size_t c = 0; c < kPixelChannels; ++c) {
      const double std = spec.std[c];
      task.scale[c] = static_cast<float>(1 / (full_scale(image.dtype) * std));
      task.offset[c] = static_cast<float>(-spec.mean[c] / std);
    }
  }
  const std::size_t blocks = (size + kRowBlock - 1) / kRowBlock;
  const auto block = [&](std::size_t index) {
    const RowTask& task = tasks[index / blocks];
    const std::size_t begin = index % blocks * kRowBlock;
    const ImageView& image = *task.image;
    const std::size_t values = task.columns * image.channels;
    const std::size_t packed = lines(values * item_size(image.dtype));
    // A line is written up to one vector, and read up to one of colour pixels, past its values.
    char* memory = scratch(2 * packed + (values + 4 * kPad) * sizeof(float));
    char* const rows_memory[2] = {memory, memory + packed};
    rows(task, begin, std::min(begin + kRowBlock, size), rows_memory,
         reinterpret_cast<float*>(memory + 2 * packed), out + index / blocks * image_values);
  };
  shared_pool()->for_each(n * blocks, block, work > kWorthWaking);
}

double value_at(const ImageView& image, std::size_t y, std::size_t x, std::size_t c) {
  const char* from = static_cast<const char*>(image.data) +
                     static_cast<std::ptrdiff_t>(y) * image.row_stride +
                     static_cast<std::ptrdiff_t>(x) * image.column_stride +
                     static_cast<std::ptrdiff_t>(c) * image.channel_stride;
  if (image.dtype == DType::f64) {
    double value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// As Python writes it.
std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

}  // namespace

void check_image(const ImageView& image, const std::string& name) {
  if (image.dtype == DType::bf16) fail(name, "dtype uint8, uint16 or float32", "bfloat16");
  const bool grey = image.channels == 1;
  if (image.height == 0 || image.width == 0 || (!grey && image.channels != kPixelChannels)) {
    fail(name, "(H, W) or (H, W, 3)",
         "(" + std::to_string(image.height) + ", " + std::to_string(image.width) +
             (grey ? "" : ", " + std::to_string(image.channels)) + ")");
  }
}

void check_finite(const ImageView* images, std::size_t n, const std::string& name, bool batch) {
  struct Block {
    std::size_t image, begin, end;  // rows [begin, end) of views[image]
  };
  std::vector<ImageView> views(images, images + n);
  std::vector<Block> blocks;
  std::size_t values = 0;
  for (std::size_t i = 0; i < n; ++i) {
    ImageView& view = views[i];
    if (!is_float(view.dtype)) continue;
    // The order does not matter here, so rows are what lies closer together.
    if (std::abs(view.row_stride) < std::abs(view.column_stride)) {
      std::swap(view.height, view.width);
      std::swap(view.row_stride, view.column_stride);
    }
    values += view.height * view.width * view.channels;
    const std::size_t rows = std::max<std::size_t>(kFiniteBlock / view.width / view.channels, 1);
    for (std::size_t y = 0; y < view.height; y += rows) {
      blocks.push_back({i, y, std::min(y + rows, view.height)});
    }
  }
  const auto finite = SCRD_PICK(finite_rows);
  std::atomic<std::size_t> first{blocks.size()};
  const auto check = [&](std::size_t index) {
    const Block& block = blocks[index];
    if (index > first.load(std::memory_order_relaxed)) return;
    if (finite(views[block.image], block.begin, block.end)) return;
    std::size_t seen = first.load();
    while (index < seen && !first.compare_exchange_weak(seen, index)) {
    }
  };
  shared_pool()->for_each(blocks.size(), check, values > kWorthWaking);
  if (first == blocks.size()) return;
  const std::size_t i = blocks[first].image;
  const ImageView& image = images[i];
  const std::string image_text = std::to_string(i);
  for (std::size_t y = 0; y < image.height; ++y) {
    for (std::size_t x = 0; x < image.width; ++x) {
      for (std::size_t c = 0; c < image.channels; ++c) {
        const double value = value_at(image, y, x, c);
        if (std::isfinite(static_cast<float>(value))) continue;
        fail<NotFiniteError>(batch ? name : name + "[" + image_text + "]", "finite values",
                             number_text(value) + " at index (" + (batch ? image_text + ", " : "") +
                                 std::to_string(y) + ", " + std::to_string(x) +
                                 (image.channels == 1 ? "" : ", " + std::to_string(c)) + ")");
      }
    }
  }
}

bool all_inside(const void* values, DType dtype, std::size_t count, float low, float high) {
  const bool wide = dtype == DType::f64;
  const auto inside = wide ? SCRD_PICK(inside_f64) : SCRD_PICK(inside_f32);
  const std::size_t item = wide ? sizeof(double) : sizeof(float);
  const std::size_t blocks = (count + kFiniteBlock - 1) / kFiniteBlock;
  std::atomic<bool> all{true};
  const auto check = [&](std::size_t index) {
    if (!all.load(std::memory_order_relaxed)) return;
    const std::size_t begin = index * kFiniteBlock;
    const char* from = static_cast<const char*>(values) + begin * item;
    if (!inside(from, std::min(kFiniteBlock, count - begin), low, high)) all = false;
  };
  shared_pool()->for_each(blocks, check, count > kWorthWaking);
  return all;
}

std::size_t input_values(std::size_t n, const PixelSpec& spec) {
  if (spec.size == 0 || spec.size > kMostSize) {
    fail("size", "1 to " + std::to_string(kMostSize), std::to_string(spec.size));
  }
  for (float std : spec.std) {
    if (!(std > 0)) fail("std", "three numbers above 0", std::to_string(std));
  }
  const std::size_t image = kPixelChannels * spec.size * spec.size;
  if (n > PTRDIFF_MAX / sizeof(float) / image) throw std::bad_alloc();
  return n * image;
}

void preprocess(const ImageView* images, std::size_t n, const PixelSpec& spec, float* out) {
  preprocess_as(images, n, spec, out, SCRD_PICK(rows_f32));
}

void preprocess(const ImageView* images, std::size_t n, const PixelSpec& spec, std::uint16_t* out) {
  preprocess_as(images, n, spec, out, SCRD_PICK(rows_bf16));
}

}  // namespace scrd
