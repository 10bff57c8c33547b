#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "first_pixel.hpp"
#include "scrd/error.hpp"
#include "scrd/scorer.hpp"

namespace scrd {
namespace {

// Batches that are submitted while the network works on one image: all of them wait.
struct Busy {
  Busy() {
    while (!runner->is_waited_for) std::this_thread::yield();
  }
  Scorer::Future submit(const std::vector<float>& levels, Terms terms) {
    return scorer.submit(images_of(levels), true, Wanted{}, nullptr, std::move(terms));
  }
  void go_on() {
    runner->release.set_value();
    CHECK(are_scores_of(*first.get(), level));
  }

  const std::vector<float> level{0.125f};
  const std::shared_ptr<HeldBack> runner = std::make_shared<HeldBack>();
  Scorer scorer = scorer_of(runner);
  Scorer::Future first = scorer.submit(images_of(level), true, Wanted{});
};

Terms gathering(std::chrono::nanoseconds gather_for = std::chrono::nanoseconds(0)) {
  Terms terms;
  terms.gathers = true;
  terms.gather_for = gather_for;
  return terms;
}

Terms at_most(std::size_t images) {
  Terms terms;
  terms.most_waiting = images;
  return terms;
}

TEST(small_batches_are_gathered_where_they_may_be) {
  for (bool gathers : {false, true}) {
    std::vector<std::vector<float>> batches;
    for (std::size_t n : {1, 2, 3, 2, 1}) batches.push_back(levels_of(n, 10 + batches.size()));
    Busy busy;
    std::vector<Scorer::Future> futures;
    for (const auto& levels : batches) {
      futures.push_back(busy.submit(levels, gathers ? gathering() : Terms()));
    }
    CHECK(busy.scorer.waiting() == 9);
    busy.go_on();
    for (std::size_t i = 0; i < batches.size(); ++i) {
      CHECK(are_scores_of(*futures[i].get(), batches[i]));
    }
    CHECK(busy.scorer.executions() == (gathers ? 4u : 10u));  // 1, 4, 4, 1, or one each
    CHECK(busy.scorer.executions() == static_cast<std::size_t>(busy.runner->pieces));
  }
}

TEST(whoever_is_to_blame_for_a_gathered_piece_fails_alone) {
  const std::vector<float> good{0.25f}, bad{0.5f}, two{0.75f, 1.0f};
  Busy busy;
  busy.runner->fails_on = 0.5f;
  std::vector<Scorer::Future> futures;
  for (int i = 0; i < 3; ++i) {
    for (const auto* levels : {&bad, &two, &good}) {
      futures.push_back(busy.submit(*levels, gathering()));
    }
  }
  busy.go_on();
  for (std::size_t i = 0; i < futures.size(); i += 3) {
    CHECK_THROWS(Torn, "the network tore", futures[i].get());
    CHECK(are_scores_of(*futures[i + 1].get(), two));
    CHECK(are_scores_of(*futures[i + 2].get(), good));
  }
  CHECK(busy.scorer.waiting() == 0);
}

TEST(what_is_gathered_waits_for_others_for_a_while) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
  const std::vector<std::vector<float>> batches{{0.25f}, {0.5f, 0.75f}, {1.0f}};
  const auto submit = [&](std::size_t batch, std::chrono::nanoseconds gather_for) {
    return scorer.submit(images_of(batches[batch]), true, Wanted{}, nullptr, gathering(gather_for));
  };
  std::vector<Scorer::Future> futures;
  for (std::size_t i : {0, 1, 2}) futures.push_back(submit(i, std::chrono::hours(1)));
  for (std::size_t i : {0, 1, 2}) {  // at once: the largest piece is full
    CHECK(are_scores_of(*futures[i].get(), batches[i]));
  }
  CHECK(scorer.executions() == 1);
  const auto began = std::chrono::steady_clock::now();
  CHECK(are_scores_of(*submit(1, std::chrono::milliseconds(50)).get(), batches[1]));
  CHECK(std::chrono::steady_clock::now() - began >= std::chrono::milliseconds(50));
  Scorer::Future last = submit(0, std::chrono::hours(1));
  scorer.close();  // does not wait for others
  CHECK(are_scores_of(*last.get(), batches[0]));
}

TEST(no_more_waits_than_is_allowed) {
  const std::vector<float> levels = levels_of(3, 20);
  Busy busy;
  Scorer::Future one = busy.submit(levels, at_most(5));
  CHECK_THROWS(OverloadedError,
               "batch: expected at most 5 images waiting with it, got 3 others and 3 of it",
               busy.submit(levels, at_most(5)));
  CHECK(busy.scorer.waiting() == 3);
  Scorer::Future two = busy.submit(levels, at_most(6));
  CHECK_THROWS(OverloadedError,
               "batch: expected at most 2 images waiting with it, got 6 others and 3 of it",
               busy.submit(levels, at_most(2)));
  busy.go_on();
  CHECK(are_scores_of(*one.get(), levels));
  CHECK(are_scores_of(*two.get(), levels));
}

TEST(what_is_cancelled_is_dropped_and_makes_room) {
  const std::vector<float> levels = levels_of(3, 21), other = levels_of(2, 22);
  Busy busy;
  const auto flag = std::make_shared<std::atomic<bool>>(false);
  Terms terms = at_most(4);
  terms.cancelled = flag;
  auto owner = std::make_shared<int>(7);
  const std::weak_ptr<int> watch = owner;
  Scorer::Future dropped =
      busy.scorer.submit(images_of(levels), true, Wanted{}, std::move(owner), terms);
  CHECK_THROWS(OverloadedError,
               "batch: expected at most 4 images waiting with it, got 3 others and 2 of it",
               busy.submit(other, at_most(4)));
  *flag = true;
  Scorer::Future kept = busy.submit(other, at_most(4));  // drops the other at once
  const std::string said = "batch: expected scores to be waited for, got them cancelled";
  CHECK_THROWS(CancelledError, said, dropped.get());
  CHECK(watch.expired());
  CHECK(busy.scorer.waiting() == 2);
  // One that nobody submits after is dropped by the thread that comes to it.
  terms.most_waiting = 5;
  Scorer::Future last = busy.submit(levels, terms);
  busy.go_on();
  CHECK(are_scores_of(*kept.get(), other));
  CHECK_THROWS(CancelledError, said, last.get());
  CHECK(busy.scorer.executions() == 3);
}

TEST(many_threads_cancel_and_are_refused) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>(2));
  std::atomic<int> wrong{0}, served{0}, refused{0}, cancelled{0};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t call = 0; call < 60; ++call) {
        const std::vector<float> levels = levels_of(1 + call % 5, 300 * t + call);
        auto flag = std::make_shared<std::atomic<bool>>(false);
        Terms terms = gathering(std::chrono::microseconds(call % 2 ? 0 : 200));
        terms.gathers = (t + call) % 3 != 0;
        terms.most_waiting = 12;
        terms.cancelled = flag;
        try {
          auto future =
              scorer.submit(images_of(levels), true, Wanted{call % 2 == 0}, nullptr, terms);
          if (call % 4 == 0) *flag = true;
          wrong += !are_scores_of(*future.get(), levels);
          served += 1;
        } catch (const OverloadedError&) {
          refused += 1;
        } catch (const CancelledError&) {
          cancelled += 1;
          wrong += call % 4 != 0;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(served + refused + cancelled == 360);
  CHECK(served > 0);
  CHECK(scorer.waiting() == 0);
}

}  // namespace
}  // namespace scrd
