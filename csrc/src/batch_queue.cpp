#include "batch_queue.hpp"

#include <algorithm>
#include <string>

#include "scrd/error.hpp"

namespace scrd {
namespace {

bool is_wanted(const Range& range) { return !range.job->is_cancelled(); }

// What was taken from the queues because nobody waits for it. Not under mutex_: who lets go of a
// job's owner may need another lock, as Python's.
void cancel(std::vector<Range> ranges) {
  for (const Range& range : ranges) {
    range.finished(std::make_exception_ptr(
        CancelledError("batch: expected scores to be waited for, got them cancelled")));
  }
}

}  // namespace

void BatchQueue::push(const std::shared_ptr<Job>& job) {
  while (!try_push(job)) cancel(take_cancelled());
  ready_.notify_all();
}

// False: some of what waits is cancelled.
bool BatchQueue::try_push(const std::shared_ptr<Job>& job) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closing_) throw ClosedError("scorer: expected an open one, got one after close()");
  if (has_cancelled()) return false;  // also so that their images do not gather here
  const std::size_t n = job->images.size(), most = job->terms.most_waiting;
  const std::size_t others = count_waiting();
  if (n <= most && others <= most - n) {
    queue_.push_back({job, 0, n});
    return true;
  }
  fail<OverloadedError>("batch", "at most " + std::to_string(most) + " images waiting with it",
                        std::to_string(others) + " others and " + std::to_string(n) + " of it");
}

void BatchQueue::put_back(const Piece& piece) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    alone_.insert(alone_.end(), piece.ranges.begin(), piece.ranges.end());
  }
  ready_.notify_all();
}

void BatchQueue::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  ready_.notify_all();
}

std::size_t BatchQueue::waiting() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return count_waiting();
}

std::vector<Range> BatchQueue::take_cancelled() {
  std::vector<Range> taken;
  std::lock_guard<std::mutex> lock(mutex_);
  for (std::deque<Range>* queue : {&alone_, &queue_}) {
    const auto first = std::stable_partition(queue->begin(), queue->end(), is_wanted);
    taken.insert(taken.end(), first, queue->end());
    queue->erase(first, queue->end());
  }
  return taken;
}

// The next five are called with mutex_ held.

bool BatchQueue::has_cancelled() const {
  return !std::all_of(alone_.begin(), alone_.end(), is_wanted) ||
         !std::all_of(queue_.begin(), queue_.end(), is_wanted);
}

std::size_t BatchQueue::count_waiting() const {
  std::size_t count = 0;
  for (const Range& range : queue_) count += is_wanted(range) ? range.count : 0;
  for (const Range& range : alone_) count += is_wanted(range) ? range.count : 0;
  return count;
}

// How many images at the front of the queue may go together, as far as that matters.
std::size_t BatchQueue::count_gathered() const {
  std::size_t count = 0;
  for (const Range& range : queue_) {
    if (!range.job->terms.gathers || count >= buckets_.back()) break;
    count += range.count;
  }
  return count;
}

// The largest batch size that so many images fill.
std::size_t BatchQueue::bucket_of(std::size_t count) const {
  std::size_t found = 1;
  for (std::size_t bucket : buckets_) found = bucket <= count ? bucket : found;
  return found;
}

// Takes a piece from the queues, of which one has something.
void BatchQueue::cut(Piece& piece) {
  piece = Piece();
  std::deque<Range>& queue = alone_.empty() ? queue_ : alone_;
  const std::size_t gathered = alone_.empty() ? count_gathered() : 0;
  const std::size_t size = bucket_of(gathered > 0 ? gathered : queue.front().count);
  while (piece.count < size) {
    Range& front = queue.front();
    const std::size_t count = std::min(front.count, size - piece.count);
    piece.ranges.push_back({front.job, front.first, count});
    piece.count += count;
    front.first += count;
    front.count -= count;
    if (front.count == 0) queue.pop_front();
  }
}

bool BatchQueue::take(Piece& piece, bool wait) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    if (has_cancelled()) {
      lock.unlock();
      cancel(take_cancelled());
      lock.lock();
    }
    if (alone_.empty() && queue_.empty()) {
      if (!wait || closing_) return false;
      ready_.wait(lock);
      continue;
    }
    if (alone_.empty() && !closing_ && queue_.front().job->terms.gathers &&
        count_gathered() < buckets_.back() && count_gathered() == count_waiting()) {
      // Only while all that waits gathers: nobody waits for others behind one that does not.
      const Clock::time_point until = queue_.front().job->gather_until;
      if (Clock::now() < until) {
        if (!wait) return false;
        ready_.wait_until(lock, until);
        continue;
      }
    }
    cut(piece);
    return true;
  }
}

}  // namespace scrd
