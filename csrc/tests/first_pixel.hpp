// Networks of the tests, images for them, and what their scores must be.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "check.hpp"
#include "scrd/scorer.hpp"

namespace scrd {

constexpr std::size_t kSize = 32;
inline const std::array<std::size_t, kScales> kSides{8, 4, 2};

// Without a string: std::runtime_error counts its string's owners inside libstdc++, out of the
// thread sanitizer's sight.
struct Torn : std::exception {
  const char* what() const noexcept override { return "the network tore"; }
};

// In place of a network: every distance of an image is its first pixel. It computes in a thread of
// its own between start and wait, as a real one does, so that a race over the pixels is a race.
class FirstPixel : public Runner {
 public:
  explicit FirstPixel(std::size_t streams = 1, std::vector<std::size_t> buckets = {1, 4})
      : buckets_(std::move(buckets)), streams_(streams) {}

  std::size_t input_size() const override { return kSize; }
  std::size_t streams() const override { return streams_.size(); }
  const std::vector<std::size_t>& buckets() const override { return buckets_; }

  void start(std::size_t stream, const float* pixels, std::size_t n) override {
    pieces.fetch_add(1);
    Stream& s = streams_[stream];
    s.running = std::async(std::launch::async, [this, &s, pixels, n] {
      for (int k = 0; k < kScales; ++k) s.distances[k].clear();
      for (std::size_t i = 0; i < n; ++i) {
        const float value = pixels[i * 3 * kSize * kSize];
        if (value == fails_on) throw Torn();
        for (int k = 0; k < kScales; ++k) {
          s.distances[k].insert(s.distances[k].end(), kSides[k] * kSides[k], value);
        }
      }
      s.weights.assign(n * kScales, 1.0f / 3);
    });
  }

  NetworkOutputs wait(std::size_t stream) override {
    Stream& s = streams_[stream];
    s.running.get();
    NetworkOutputs outputs;
    for (int k = 0; k < kScales; ++k) {
      outputs.distances[k] = {s.distances[k].data(), s.distances[k].size()};
    }
    outputs.scale_weights = {s.weights.data(), s.weights.size()};
    return outputs;
  }

  std::atomic<int> pieces{0};
  std::atomic<float> fails_on{-1};

 private:
  struct Stream {
    std::future<void> running;
    std::array<std::vector<float>, kScales> distances;
    std::vector<float> weights;
  };
  const std::vector<std::size_t> buckets_;
  std::vector<Stream> streams_;
};

inline Scorer scorer_of(std::shared_ptr<Runner> runner) {
  return Scorer(std::move(runner), PixelSpec{kSize, {0, 0, 0}, {1, 1, 1}},
                Tail(kSize, kSides, 2.0, false), false);
}

// Grey images of one pixel each, of these levels.
inline std::vector<ImageView> images_of(const std::vector<float>& levels) {
  std::vector<ImageView> images;
  for (const float& level : levels) {
    ImageView image;
    image.data = &level;
    image.dtype = DType::f32;
    image.height = image.width = image.channels = 1;
    images.push_back(image);
  }
  return images;
}

inline bool are_scores_of(const Scores& scores, const std::vector<float>& levels) {
  bool right = scores.n == levels.size() && scores.size == kSize;
  for (std::size_t i = 0; right && i < levels.size(); ++i) {
    right = std::abs(scores.scores[i] - 3 * levels[i]) < 1e-5;
    for (std::size_t p = 0; right && scores.maps && p < kSize * kSize; ++p) {
      right = std::abs(scores.maps[i * kSize * kSize + p] - 3 * levels[i]) < 1e-5;
    }
  }
  return right;
}

inline std::vector<float> levels_of(std::size_t n, std::size_t seed) {
  test::Random random(seed);
  std::vector<float> levels(n);
  for (float& level : levels) level = static_cast<float>(random.uniform());
  return levels;
}

// A network that gives nothing before it is told to.
class HeldBack : public FirstPixel {
 public:
  using FirstPixel::FirstPixel;
  NetworkOutputs wait(std::size_t stream) override {
    is_waited_for = true;
    released_.wait_for(std::chrono::seconds(60));
    return FirstPixel::wait(stream);
  }
  std::promise<void> release;
  std::atomic<bool> is_waited_for{false};

 private:
  std::future<void> released_ = release.get_future();
};

}  // namespace scrd
