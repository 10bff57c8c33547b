// Scores that a scorer owes, as several threads wait for them.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>

#include "scrd/scorer.hpp"

namespace scrd {

// The scores of a submitted batch, which are on their way. Any number of threads may use it.
class PendingScores {
 public:
  using Between = std::function<void()>;

  // cancelled: that of the batch's terms, where it is wanted that `cancel` drops it.
  explicit PendingScores(Scorer::Future future,
                         std::shared_ptr<std::atomic<bool>> cancelled = nullptr);

  // Drops the batch where it still waits: `get` then throws CancelledError. What the network has
  // begun is finished.
  void cancel() {
    if (cancelled_) *cancelled_ = true;
  }

  // Whether get would not wait.
  bool done() const { return is_done(future()); }

  // Waits this long at most; whether it is done. Calls `between`, if any, at least ten times a
  // second meanwhile; what that throws ends the waiting. Throws InputError ("timeout") on seconds
  // below 0, and ClosedError in a fork of the process that submitted the batch.
  bool wait(double seconds, const Between& between = nullptr) const;

  // Waits as `wait` does, then gives the scores, or throws what scoring threw: once. Throws
  // InputError when it is called again.
  Scores get(const Between& between = nullptr);

 private:
  using SharedFuture = std::shared_future<std::unique_ptr<Scores>>;
  static bool is_done(const SharedFuture& future);
  SharedFuture future() const;

  const long process_;
  const std::shared_ptr<std::atomic<bool>> cancelled_;
  mutable std::mutex mutex_;
  SharedFuture future_;  // not valid once get was called; guarded by mutex_
};

}  // namespace scrd
