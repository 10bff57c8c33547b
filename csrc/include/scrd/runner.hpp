// What the scorer asks of a compiled network. One implementation per runtime.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "scrd/anomaly_map.hpp"

namespace scrd {

// What a network gives for n images: scale weights (n, 3) and either three distances
// (n, h_k, w_k), or, where teacher[0].data is set, the features that they are computed from. Sizes
// count floats; the scorer refuses what does not fit.
struct NetworkOutputs {
  struct Values {
    const float* data = nullptr;
    std::size_t size = 0;
  };
  Values scale_weights;
  std::array<Values, kScales> distances;
  std::array<FeatureView, kScales> teacher, student;
};

class Runner {
 public:
  Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  virtual ~Runner() = default;

  // The side S of the pixels it is compiled for.
  virtual std::size_t input_size() const = 0;

  // Requests that can be under way at a time. A stream is used by one thread at a time.
  virtual std::size_t streams() const = 0;

  // The batch sizes it is compiled for, rising from 1.
  virtual const std::vector<std::size_t>& buckets() const = 0;

  // Begins the network on n images (one of the buckets), float32 (n, 3, S, S) and normalised,
  // which stay as they are until wait returns. May throw.
  virtual void start(std::size_t stream, const float* pixels, std::size_t n) = 0;

  // Ends what start began; the outputs are valid until the next start on this stream. May throw.
  virtual NetworkOutputs wait(std::size_t stream) = 0;
};

}  // namespace scrd
