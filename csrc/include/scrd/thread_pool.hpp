// One small pool of threads for all kernels of the process.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace scrd {

class ThreadPool {
 public:
  // threads counts the caller: a pool of 1 has no thread of its own. Throws InputError where the
  // system cannot start that many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // body(i) for every i in [0, count), each exactly once, by the caller and the pool's threads;
  // returns when all are done. Any number of threads may call at a time. body must not throw.
  // wake: false where all the work takes little longer than to wake a thread; those that sleep are
  // then left alone, and those that still look for work join in.
  template <typename Body>
  void for_each(std::size_t count, const Body& body, bool wake = true) {
    run(
        count, [](const void* context, std::size_t i) { (*static_cast<const Body*>(context))(i); },
        &body, wake);
  }

 private:
  using Call = void (*)(const void*, std::size_t);
  struct Job {
    Call call;
    const void* context;
    std::size_t count;
    std::atomic<std::size_t> next{0};
    std::atomic<int> helpers{0};  // threads of the pool inside; grows under the mutex only
  };

  void run(std::size_t count, Call call, const void* context, bool wake);
  void work();
  void stop();
  static void drain(Job& job);

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job*> jobs_;           // guarded by mutex_
  std::atomic<unsigned> posted_{0};  // counts jobs, so that an idle worker can spin on it
  bool closing_ = false;             // guarded by mutex_
  std::vector<std::thread> workers_;
};

// The pool that the kernels use: as many threads as this process may run on, or what
// set_threads chose. A pool in use stays alive until its last user lets go. Both throw InputError:
// on a number outside 1 to 1024, and as the constructor does.
std::shared_ptr<ThreadPool> shared_pool();
void set_threads(int threads);

}  // namespace scrd
