#include "scrd/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <string>
#include <system_error>

#include "scrd/error.hpp"

namespace scrd {
namespace {

// An idle worker looks for work this long before it sleeps: waking a sleeping thread takes about
// 55 us, a third of a whole anomaly map.
constexpr auto kSpin = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  workers_.reserve(static_cast<std::size_t>(std::max(threads, 1) - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
    stop();
    fail("threads", "as many as the system can start", std::to_string(threads));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
    posted_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::drain(Job& job) {
  for (std::size_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) {
    job.call(job.context, i);
  }
}

void ThreadPool::run(std::size_t count, Call call, const void* context, bool wake) {
  if (workers_.empty() || count < 2) {
    for (std::size_t i = 0; i < count; ++i) call(context, i);
    return;
  }
  Job job{call, context, count};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
    posted_.fetch_add(1);
  }
  if (wake) wake_.notify_all();
  drain(job);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
  }
  // Whoever is still inside has its last item: that is over before a sleep and a waking would be.
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (job.helpers.load(std::memory_order_acquire) > 0) {
    if (std::chrono::steady_clock::now() < end) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    Job* found = nullptr;
    for (Job* job : jobs_) {
      if (job->next.load(std::memory_order_relaxed) < job->count) found = job;
    }
    if (found != nullptr) {
      found->helpers.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      drain(*found);
      found->helpers.fetch_sub(1, std::memory_order_release);  // the job may be gone from here on
      lock.lock();
      continue;
    }
    if (closing_) return;
    const unsigned seen = posted_.load();
    lock.unlock();
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (posted_.load(std::memory_order_relaxed) == seen &&
           std::chrono::steady_clock::now() < end) {
      pause();
    }
    lock.lock();
    wake_.wait(lock, [this, seen] { return posted_.load() != seen; });
  }
}

namespace {

struct Shared {
  std::mutex mutex;
  std::shared_ptr<ThreadPool> pool;
};

Shared& shared() {
  // Never destroyed: a thread may still be scoring while the process ends.
  static Shared* state = [] {
    auto* made = new Shared;
    // A forked child has none of the pool's threads and perhaps a locked mutex. It starts anew;
    // what it inherited cannot be destroyed, so it is left alone.
    pthread_atfork(nullptr, nullptr, [] { new (&shared()) Shared; });
    return made;
  }();
  return *state;
}

int allowed_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

std::shared_ptr<ThreadPool> shared_pool() {
  Shared& state = shared();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.pool) state.pool = std::make_shared<ThreadPool>(allowed_cpus());
  return state.pool;
}

void set_threads(int threads) {
  if (threads < 1 || threads > 1024) fail("threads", "1 to 1024", std::to_string(threads));
  auto pool = std::make_shared<ThreadPool>(threads);
  Shared& state = shared();
  std::lock_guard<std::mutex> lock(state.mutex);
  state.pool.swap(pool);
}

}  // namespace scrd
