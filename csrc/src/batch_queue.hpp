// Batches that wait for a scorer's streams.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "scrd/scorer.hpp"

namespace scrd {

using Clock = std::chrono::steady_clock;

// A submitted batch. Its images may be served by several threads; who ends the last one fulfils the
// promise.
struct Job {
  std::vector<ImageView> images;
  std::unique_ptr<Scores> scores;
  std::promise<std::unique_ptr<Scores>> promise;
  Terms terms;
  Clock::time_point gather_until;
  std::atomic<std::size_t> unfinished{0};  // images
  std::mutex mutex;
  std::exception_ptr error;  // the first one; guarded by mutex

  bool is_cancelled() const { return terms.cancelled && *terms.cancelled; }

  void finished(std::size_t count, std::exception_ptr thrown = nullptr) {
    if (thrown) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::move(thrown);
    }
    if (unfinished.fetch_sub(count) != count) return;
    if (error) {
      promise.set_exception(std::move(error));
    } else {
      promise.set_value(std::move(scores));
    }
  }
};

// Some images of a job, one after the other.
struct Range {
  std::shared_ptr<Job> job;
  std::size_t first = 0, count = 0;

  void finished(std::exception_ptr thrown = nullptr) const {
    job->finished(count, std::move(thrown));
  }
};

// What goes through the network at once: one range, or several of batches that gather.
struct Piece {
  std::vector<Range> ranges;
  std::size_t count = 0;  // images
};

// Gives out batches in order of submission, cut into pieces of the network's batch sizes or
// gathered into them. Any number of threads may use it.
class BatchQueue {
 public:
  // buckets: batch sizes, rising from 1.
  explicit BatchQueue(std::vector<std::size_t> buckets) : buckets_(std::move(buckets)) {}

  // Throws OverloadedError where more would wait than the job's terms allow, and ClosedError.
  void push(const std::shared_ptr<Job>& job);

  // The next piece, waiting for one if asked to. False: there is none.
  bool take(Piece& piece, bool wait);

  // Each of a piece's ranges again, alone, and before all others.
  void put_back(const Piece& piece);

  // Takes nothing more; what waits is still given out.
  void close();

  // Images that wait.
  std::size_t waiting() const;

 private:
  bool try_push(const std::shared_ptr<Job>& job);
  std::vector<Range> take_cancelled();
  bool has_cancelled() const;
  std::size_t count_waiting() const;
  std::size_t count_gathered() const;
  std::size_t bucket_of(std::size_t count) const;
  void cut(Piece& piece);

  const std::vector<std::size_t> buckets_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Range> queue_;  // guarded by mutex_
  std::deque<Range> alone_;  // guarded by mutex_; come before the others
  bool closing_ = false;     // guarded by mutex_
};

}  // namespace scrd
