#include "scrd/pending_scores.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <string>
#include <utility>

#include "scrd/error.hpp"

namespace scrd {

PendingScores::PendingScores(Scorer::Future future, std::shared_ptr<std::atomic<bool>> cancelled)
    : process_(getpid()), cancelled_(std::move(cancelled)), future_(future.share()) {}

bool PendingScores::is_done(const SharedFuture& future) {
  return !future.valid() || future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

PendingScores::SharedFuture PendingScores::future() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return future_;
}

bool PendingScores::wait(double seconds, const Between& between) const {
  using Seconds = std::chrono::duration<double>;
  if (!(seconds >= 0)) fail("timeout", "seconds from 0", std::to_string(seconds));
  if (process_ != getpid()) {
    throw ClosedError("result: expected the process that submitted the batch, got a fork of it");
  }
  const auto end = std::chrono::steady_clock::now() + Seconds(seconds);
  const SharedFuture future = this->future();
  while (!is_done(future)) {
    const Seconds left = end - std::chrono::steady_clock::now();
    if (left.count() <= 0) return false;
    future.wait_for(std::min(left, Seconds(0.1)));
    if (between) between();
  }
  return true;
}

Scores PendingScores::get(const Between& between) {
  wait(std::numeric_limits<double>::infinity(), between);
  SharedFuture taken;  // and let go of here: an error may refer to whoever holds this
  {
    std::lock_guard<std::mutex> lock(mutex_);
    std::swap(taken, future_);
  }
  if (!taken.valid()) fail("get", "to be called once", "a second call");
  return std::move(*taken.get());
}

}  // namespace scrd
