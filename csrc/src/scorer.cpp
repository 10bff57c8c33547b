#include "scrd/scorer.hpp"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "batch_queue.hpp"
#include "scrd/error.hpp"

namespace scrd {
namespace {

long this_process() { return static_cast<long>(getpid()); }

// Copies what a network gave, which must be `size` values.
void keep(const NetworkOutputs::Values& values, std::size_t size, const std::string& name,
          float* to) {
  if (values.size != size) {
    fail("network", std::to_string(size) + " values of " + name, std::to_string(values.size));
  }
  std::memcpy(to, values.data, size * sizeof(float));
}

// What one stream works with. `pixels` has two halves, so that one can be filled while the network
// reads the other, and so have the thumbnails that a prior reads; `distances` and `scale_weights`
// keep what the network gave while the next piece is under way.
struct Stream {
  std::size_t index, half;
  std::unique_ptr<float[]> pixels;
  std::vector<float> thumbnails;
  std::array<std::vector<float>, kScales> distances;
  std::vector<float> scale_weights;
};

}  // namespace

// What a scorer's threads work on; each of them keeps it alive.
class Scorer::Service : public std::enable_shared_from_this<Service> {
 public:
  Service(std::shared_ptr<Runner> runner, PixelSpec pixels, Tail tail, bool maximum);
  ~Service();

  void begin();
  Future submit(std::vector<ImageView> images, bool is_batch, Wanted wanted,
                std::shared_ptr<void> owner, Terms terms);
  void close();
  std::size_t waiting() const { return queue_->waiting(); }
  std::size_t executions() const { return executions_; }
  bool is_forked() const { return process_ != this_process(); }

 private:
  void fail_or_split(const Piece& piece, std::exception_ptr thrown);
  bool prepare(const Piece& piece, float* pixels, float* thumbnails);
  bool start(const Piece& piece, const Stream& stream, const float* pixels);
  bool wait(const Piece& piece, Stream& stream);
  void distances_of(const NetworkOutputs& outputs, const Piece& piece, Stream& stream) const;
  void finish(const Piece& piece, const Stream& stream, const float* thumbnails) const;
  void finish_range(const Range& range, const Stream& stream, const float* thumbnails,
                    std::size_t first) const;
  void serve(Stream& stream);

  std::shared_ptr<Runner> runner_;
  const PixelSpec pixels_;
  const Tail tail_;
  const bool maximum_;
  const long process_;
  std::vector<std::unique_ptr<Stream>> streams_;

  std::atomic<std::size_t> executions_{0};

  std::unique_ptr<BatchQueue> queue_;

  std::mutex own_mutex_;
  std::vector<std::thread::id> own_;  // guarded by own_mutex_

  std::mutex close_mutex_;
  std::vector<std::thread> threads_;  // guarded by close_mutex_ once they run
};

Scorer::Scorer(std::shared_ptr<Runner> runner, PixelSpec pixels, Tail tail, bool maximum)
    : service_(std::make_shared<Service>(std::move(runner), pixels, std::move(tail), maximum)) {
  service_->begin();
}

Scorer::~Scorer() {
  if (service_->is_forked()) {
    // fork() left the threads behind, and with them whatever would answer the runner or a lock:
    // nothing of it can be destroyed.
    new std::shared_ptr<Service>(service_);
  } else {
    service_->close();
  }
}

Scorer::Future Scorer::submit(std::vector<ImageView> images, bool is_batch, Wanted wanted,
                              std::shared_ptr<void> owner, Terms terms) {
  return service_->submit(std::move(images), is_batch, wanted, std::move(owner), std::move(terms));
}

std::size_t Scorer::waiting() const { return service_->waiting(); }

std::size_t Scorer::executions() const { return service_->executions(); }

void Scorer::close() { service_->close(); }

Scorer::Service::Service(std::shared_ptr<Runner> runner, PixelSpec pixels, Tail tail, bool maximum)
    : runner_(std::move(runner)),
      pixels_(pixels),
      tail_(std::move(tail)),
      maximum_(maximum),
      process_(this_process()) {
  if (!runner_) fail("runner", "a runner", "none");
  const std::vector<std::size_t>& buckets = runner_->buckets();
  bool rising = !buckets.empty() && buckets[0] == 1;
  for (std::size_t i = 1; i < buckets.size(); ++i) rising = rising && buckets[i - 1] < buckets[i];
  if (!rising) fail("buckets", "batch sizes rising from 1", "others");
  queue_ = std::make_unique<BatchQueue>(buckets);
  if (pixels_.size != tail_.size()) {
    fail("tail", "a map of side " + std::to_string(pixels_.size) + " as the network's input",
         std::to_string(tail_.size()));
  }
  if (runner_->input_size() != pixels_.size) {
    fail("runner", "a network for pixels of side " + std::to_string(pixels_.size),
         std::to_string(runner_->input_size()));
  }
  const std::size_t largest = buckets.back();
  const std::size_t half = input_values(largest, pixels_);
  for (std::size_t index = 0; index < runner_->streams(); ++index) {
    auto stream = std::make_unique<Stream>();
    stream->index = index;
    stream->half = half;
    stream->pixels.reset(new float[2 * half]);
    if (tail_.prior()) stream->thumbnails.resize(2 * largest * Prior::kCells);
    for (int k = 0; k < kScales; ++k) {
      stream->distances[k].resize(largest * tail_.sides()[k] * tail_.sides()[k]);
    }
    stream->scale_weights.resize(largest * kScales);
    streams_.push_back(std::move(stream));
  }
}

// Threads are left only where `close` was called by one of them: it, too, ends by itself.
Scorer::Service::~Service() {
  for (std::thread& thread : threads_) thread.detach();
}

void Scorer::Service::begin() {
  std::lock_guard<std::mutex> closing(close_mutex_);
  try {
    for (std::unique_ptr<Stream>& stream : streams_) {
      threads_.emplace_back([self = shared_from_this(), &stream] { self->serve(*stream); });
      std::lock_guard<std::mutex> lock(own_mutex_);
      own_.push_back(threads_.back().get_id());
    }
  } catch (const std::system_error&) {
    queue_->close();
    for (std::thread& thread : threads_) thread.join();
    const std::size_t started = threads_.size();
    threads_.clear();
    fail("streams", "as many as the system can start threads (" + std::to_string(started) + ")",
         std::to_string(streams_.size()));
  }
}

Scorer::Future Scorer::Service::submit(std::vector<ImageView> images, bool is_batch, Wanted wanted,
                                       std::shared_ptr<void> owner, Terms terms) {
  if (is_forked()) {
    throw ClosedError(
        "scorer: expected the process that made it, got a fork of it; load the engine in the "
        "process that uses it");
  }
  if (images.empty()) fail("batch", "at least one image", "none");
  for (std::size_t i = 0; i < images.size(); ++i) {
    check_image(images[i], is_batch ? "batch" : "batch[" + std::to_string(i) + "]");
  }
  check_finite(images.data(), images.size(), "batch", is_batch);
  auto job = std::make_shared<Job>();
  const std::size_t n = images.size();
  job->images = std::move(images);
  job->scores = std::make_unique<Scores>();
  job->scores->n = n;
  job->scores->size = tail_.size();
  job->scores->owner = std::move(owner);
  job->scores->scores.reset(new float[n]);
  job->scores->scale_weights.reset(new float[n * kScales]);
  if (wanted.maps) job->scores->maps.reset(new float[tail_.map_values(n)]);
  for (std::size_t k = 0; wanted.distances && k < kScales; ++k) {
    const std::size_t side = job->scores->sides[k] = tail_.sides()[k];
    job->scores->distances[k].reset(new float[n * side * side]);
  }
  Future future = job->promise.get_future();
  job->gather_until = Clock::now() + terms.gather_for;
  job->terms = std::move(terms);
  job->unfinished = n;
  queue_->push(job);
  return future;
}

void Scorer::Service::close() {
  if (is_forked()) return;
  bool is_own = false;
  queue_->close();
  {
    std::lock_guard<std::mutex> lock(own_mutex_);
    for (std::thread::id id : own_) is_own = is_own || id == std::this_thread::get_id();
  }
  if (is_own) return;  // a thread cannot wait for its own end
  std::lock_guard<std::mutex> lock(close_mutex_);
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  streams_.clear();
  runner_.reset();
}

// Of a piece of several batches it is not known which one is to blame: each goes again, alone.
void Scorer::Service::fail_or_split(const Piece& piece, std::exception_ptr thrown) {
  if (piece.ranges.size() == 1) return piece.ranges[0].finished(std::move(thrown));
  queue_->put_back(piece);
}

bool Scorer::Service::prepare(const Piece& piece, float* pixels, float* thumbnails) {
  try {
    for (const Range& range : piece.ranges) {
      preprocess(range.job->images.data() + range.first, range.count, pixels_, pixels);
      for (std::size_t i = 0; tail_.prior() && i < range.count; ++i) {
        tail_.prior()->thumbnail(pixels + i * input_values(1, pixels_),
                                 thumbnails + i * Prior::kCells);
      }
      pixels += input_values(range.count, pixels_);
      thumbnails += tail_.prior() ? range.count * Prior::kCells : 0;
    }
    return true;
  } catch (...) {
    fail_or_split(piece, std::current_exception());
    return false;
  }
}

bool Scorer::Service::start(const Piece& piece, const Stream& stream, const float* pixels) {
  try {
    executions_.fetch_add(1);
    runner_->start(stream.index, pixels, piece.count);
    return true;
  } catch (...) {
    fail_or_split(piece, std::current_exception());
    return false;
  }
}

// The distances of the network's features, which the next start would overwrite.
void Scorer::Service::distances_of(const NetworkOutputs& outputs, const Piece& piece,
                                   Stream& stream) const {
  std::array<float*, kScales> distances;
  for (std::size_t k = 0; k < kScales; ++k) {
    const FeatureView& f = outputs.teacher[k];
    const std::size_t side = tail_.sides()[k];
    if (f.n != piece.count || f.height != side || f.width != side) {
      const std::string text = std::to_string(side);
      fail("network", std::to_string(piece.count) + " feature maps of " + text + " x " + text,
           std::to_string(f.n) + " of " + std::to_string(f.height) + " x " +
               std::to_string(f.width));
    }
    distances[k] = stream.distances[k].data();
  }
  // Unchecked: `finish` finds what is not finite, and which image it belongs to.
  cosine_distances(outputs.teacher, outputs.student, distances, false);
}

bool Scorer::Service::wait(const Piece& piece, Stream& stream) {
  try {
    const NetworkOutputs outputs = runner_->wait(stream.index);
    if (outputs.teacher[0].data != nullptr) {
      distances_of(outputs, piece, stream);
    } else {
      for (int k = 0; k < kScales; ++k) {
        const std::size_t side = tail_.sides()[k];
        keep(outputs.distances[k], piece.count * side * side,
             "distances[" + std::to_string(k) + "]", stream.distances[k].data());
      }
    }
    keep(outputs.scale_weights, piece.count * kScales, "scale_weights",
         stream.scale_weights.data());
    return true;
  } catch (...) {
    fail_or_split(piece, std::current_exception());
    return false;
  }
}

// From what `wait` kept to scores and maps.
void Scorer::Service::finish(const Piece& piece, const Stream& stream,
                             const float* thumbnails) const {
  std::size_t first = 0;  // in the piece
  for (const Range& range : piece.ranges) {
    finish_range(range, stream, thumbnails, first);
    first += range.count;
  }
}

// first: where the range begins in the piece.
void Scorer::Service::finish_range(const Range& range, const Stream& stream,
                                   const float* thumbnails, std::size_t first) const {
  const Scores& scores = *range.job->scores;
  const std::size_t pixels = tail_.size() * tail_.size();
  std::exception_ptr error;
  for (std::size_t i = 0; i < range.count && !error; ++i) {
    const std::size_t image = range.first + i, place = first + i;
    std::array<const float*, kScales> distances;
    for (int k = 0; k < kScales; ++k) {
      const std::size_t values = tail_.sides()[k] * tail_.sides()[k];
      distances[k] = stream.distances[k].data() + place * values;
      if (scores.distances[k]) {
        std::memcpy(scores.distances[k].get() + image * values, distances[k],
                    values * sizeof(float));
      }
    }
    const float* weights = stream.scale_weights.data() + place * kScales;
    std::memcpy(scores.scale_weights.get() + image * kScales, weights, kScales * sizeof(float));
    float mean, *score = scores.scores.get() + image;
    try {
      tail_(distances, tail_.prior() ? thumbnails + place * Prior::kCells : nullptr, weights, 1,
            scores.maps ? scores.maps.get() + image * pixels : nullptr, maximum_ ? &mean : score,
            maximum_ ? score : nullptr);
    } catch (const NotFiniteError&) {  // the image was good: the network is to blame
      error = std::make_exception_ptr(NotFiniteError("batch: the network's output for image " +
                                                     std::to_string(image) +
                                                     " is not finite; it overflows on this image"));
    } catch (...) {
      error = std::current_exception();
    }
  }
  range.finished(std::move(error));
}

// A stream's thread: while the network works on one piece, the next one is prepared, and while it
// works on that, the first one's map is made.
void Scorer::Service::serve(Stream& stream) {
  Piece running, next;
  bool is_running = false;
  std::size_t turn = 0;
  while (true) {
    const bool is_next = queue_->take(next, !is_running);
    if (!is_next && !is_running) return;
    float* pixels = stream.pixels.get() + turn * stream.half;
    const std::size_t thumbnails = stream.thumbnails.size() / 2;
    const bool is_ready =
        is_next && prepare(next, pixels, stream.thumbnails.data() + turn * thumbnails);
    const bool is_done = is_running && wait(running, stream);
    const bool is_started = is_ready && start(next, stream, pixels);
    if (is_done) finish(running, stream, stream.thumbnails.data() + (turn ^ 1) * thumbnails);
    running = std::move(next);
    next = Piece();
    is_running = is_started;
    turn ^= 1;
  }
}

}  // namespace scrd
