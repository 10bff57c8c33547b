#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/thread_pool.hpp"

namespace scrd {
namespace {

// Counts how often each item ran.
struct Counts {
  explicit Counts(std::size_t count) : hits(count) {}
  bool all_are(int expected) const {
    return std::all_of(hits.begin(), hits.end(),
                       [&](const std::atomic<int>& hit) { return hit.load() == expected; });
  }
  std::vector<std::atomic<int>> hits;
};

// Puts back the shared pool's threads.
struct KeepThreads {
  int before = shared_pool()->threads();
  ~KeepThreads() { set_threads(before); }
};

TEST(every_item_runs_exactly_once) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (std::size_t count : {0, 1, 2, 7, 1000}) {
      Counts counts(count);
      pool.for_each(count, [&](std::size_t i) { ++counts.hits[i]; });
      CHECK(counts.all_are(1));
    }
  }
}

TEST(what_the_items_wrote_is_there_when_for_each_returns) {
  ThreadPool pool(4);
  std::vector<std::size_t> squares(100);  // not atomic: a missing barrier is a race
  for (std::size_t round = 0; round < 500; ++round) {
    pool.for_each(squares.size(), [&](std::size_t i) { squares[i] = i * i + round; });
    for (std::size_t i = 0; i < squares.size(); ++i) CHECK(squares[i] == i * i + round);
  }
}

TEST(two_threads_work_at_a_time) {
  ThreadPool pool(2);
  // Each item waits for the other; one thread alone would run into the deadline.
  std::atomic<int> started{0}, met{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  pool.for_each(2, [&](std::size_t) {
    ++started;
    while (started.load() < 2 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
    if (started.load() == 2) ++met;
  });
  CHECK(met.load() == 2);
}

TEST(a_pool_of_one_runs_in_the_caller_and_in_order) {
  ThreadPool pool(1);
  std::vector<std::size_t> order;
  bool here = true;
  const auto caller = std::this_thread::get_id();
  pool.for_each(5, [&](std::size_t i) {
    order.push_back(i);
    here = here && std::this_thread::get_id() == caller;
  });
  CHECK((order == std::vector<std::size_t>{0, 1, 2, 3, 4}));
  CHECK(here);
}

TEST(for_each_inside_for_each) {
  ThreadPool pool(3);
  constexpr std::size_t kOuter = 8, kInner = 50;
  for (int round = 0; round < 20; ++round) {
    Counts counts(kOuter * kInner);
    pool.for_each(kOuter, [&](std::size_t i) {
      pool.for_each(kInner, [&](std::size_t j) { ++counts.hits[i * kInner + j]; });
    });
    CHECK(counts.all_are(1));
  }
}

TEST(many_callers_at_once) {
  ThreadPool pool(3);
  constexpr int kCallers = 6, kRounds = 200;
  constexpr std::size_t kItems = 17;
  std::vector<std::unique_ptr<Counts>> counts;
  for (int c = 0; c < kCallers; ++c) counts.push_back(std::make_unique<Counts>(kItems));
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      for (int r = 0; r < kRounds; ++r) {
        pool.for_each(kItems, [&](std::size_t i) { ++counts[c]->hits[i]; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& count : counts) CHECK(count->all_are(kRounds));
}

TEST(pools_come_and_go) {
  for (int round = 0; round < 100; ++round) {
    ThreadPool pool(3);
    Counts counts(4);
    if (round % 2 == 0) pool.for_each(4, [&](std::size_t i) { ++counts.hits[i]; });
    CHECK(counts.all_are(round % 2 == 0 ? 1 : 0));
  }
}

TEST(the_shared_pool_is_replaced_while_in_use) {
  KeepThreads keep;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 2; ++c) {
    callers.emplace_back([&] {
      while (!stop.load()) {
        Counts counts(20);
        shared_pool()->for_each(20, [&](std::size_t i) { ++counts.hits[i]; });
        if (!counts.all_are(1)) ++wrong;
      }
    });
  }
  for (int round = 0; round < 60; ++round) set_threads(1 + round % 4);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong.load() == 0);
}

TEST(set_threads_counts_the_caller) {
  KeepThreads keep;
  for (int threads : {1, 2, 5}) {
    set_threads(threads);
    CHECK(shared_pool()->threads() == threads);
  }
}

TEST(set_threads_refuses_what_is_out_of_range) {
  const int before = shared_pool()->threads();
  for (int threads : {0, -1, 1025}) {
    CHECK_THROWS(InputError, "threads: expected 1 to 1024, got " + std::to_string(threads),
                 set_threads(threads));
  }
  CHECK(shared_pool()->threads() == before);
}

}  // namespace
}  // namespace scrd
