// Batches of images in, scores and maps out: pre-processing, network, anomaly map, in one call.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <future>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "scrd/anomaly_map.hpp"
#include "scrd/preprocess.hpp"
#include "scrd/runner.hpp"
#include "scrd/tensor.hpp"

namespace scrd {

// What is wanted of a batch besides scores and scale weights.
struct Wanted {
  bool maps = true;
  bool distances = false;  // that the maps are made of
};

// How a batch is queued.
struct Terms {
  // Images that may wait, those of this batch included; beyond that submit throws OverloadedError.
  std::size_t most_waiting = std::numeric_limits<std::size_t>::max();
  // Its images may go through the network together with those of other such batches, and wait this
  // long at most for enough of them to come. The network's sums may then depend on who else is
  // there, by a rounding.
  bool gathers = false;
  std::chrono::nanoseconds gather_for{0};
  // Once it is true what still waits is dropped, and the future throws CancelledError.
  std::shared_ptr<const std::atomic<bool>> cancelled;
};

// Scores of n images in their order: scores (n), scale_weights (n, 3), maps (n, size, size) or
// null, distances (n, sides[k], sides[k]) or null.
struct Scores {
  std::size_t n = 0, size = 0;
  std::array<std::size_t, kScales> sides{};
  std::unique_ptr<float[]> scores, scale_weights, maps;
  std::array<std::unique_ptr<float[]>, kScales> distances;
  std::shared_ptr<void> owner;  // of the images' memory, as submit was given it
};

// Any number of threads may call one Scorer. Batches are served in order of submission, and cut
// into pieces of the runner's batch sizes, or gathered into them. One thread per stream of the
// runner keeps it busy: while the network works on a piece, its thread prepares the next one and
// finishes the one before.
class Scorer {
 public:
  using Future = std::future<std::unique_ptr<Scores>>;

  // tail: how distances become map and scores; maximum: the score is the map's largest value
  // instead of its mean. The runner is used by this scorer alone.
  Scorer(std::shared_ptr<Runner> runner, PixelSpec pixels, Tail tail, bool maximum);
  ~Scorer();  // closes
  Scorer(const Scorer&) = delete;
  Scorer& operator=(const Scorer&) = delete;

  // The images' memory must stay as it is until the future is ready; `owner`, if any, is kept that
  // long and handed back with the scores. is_batch: how errors name an image, as a part of the
  // array "batch" or as the list element "batch[i]". Errors of the arguments are thrown here
  // (InputError, NotFiniteError), those of the network by the future. Throws ClosedError after
  // close().
  Future submit(std::vector<ImageView> images, bool is_batch, Wanted wanted,
                std::shared_ptr<void> owner = nullptr, Terms terms = {});

  std::unique_ptr<Scores> score(std::vector<ImageView> images, bool is_batch, Wanted wanted) {
    return submit(std::move(images), is_batch, wanted).get();
  }

  // Images that wait for a stream.
  std::size_t waiting() const;

  // Pieces that were given to the network so far.
  std::size_t executions() const;

  // Ends what was submitted, then lets go of threads and runner. Called from one of the scorer's
  // own threads (a runner may do anything) it does not wait for the end.
  void close();

 private:
  class Service;
  std::shared_ptr<Service> service_;
};

}  // namespace scrd
