#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "first_pixel.hpp"
#include "scrd/error.hpp"
#include "scrd/pending_scores.hpp"

namespace scrd {
namespace {

TEST(waiting_for_scores_ends_in_time) {
  auto runner = std::make_shared<HeldBack>();
  Scorer scorer = scorer_of(runner);
  const std::vector<float> levels{0.5f};
  PendingScores pending(scorer.submit(images_of(levels), true, Wanted{}));
  for (double seconds : {-1.0, std::nan("")}) {
    CHECK_THROWS(InputError, "timeout: expected seconds from 0, got " + std::to_string(seconds),
                 pending.wait(seconds));
  }
  int calls = 0;
  CHECK(!pending.wait(0.15, [&calls] { ++calls; }));
  CHECK(calls >= 1);
  CHECK(!pending.done() && !pending.wait(0));
  CHECK_THROWS(Torn, "the network tore", pending.get([] { throw Torn(); }));
  runner->release.set_value();
  CHECK(pending.wait(60) && pending.done());
  CHECK(are_scores_of(pending.get(), levels));
  CHECK(pending.wait(0) && pending.done());
  CHECK_THROWS(InputError, "get: expected to be called once, got a second call", pending.get());
}

TEST(pending_scores_give_an_error_once) {
  auto runner = std::make_shared<FirstPixel>();
  runner->fails_on = 0.5f;
  Scorer scorer = scorer_of(runner);
  const std::vector<float> levels{0.5f};
  PendingScores pending(scorer.submit(images_of(levels), true, Wanted{}));
  CHECK_THROWS(Torn, "the network tore", pending.get());
  CHECK_THROWS(InputError, "get: expected to be called once, got a second call", pending.get());
}

TEST(one_of_many_threads_gets_the_scores) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
  const std::vector<float> levels = levels_of(3, 6);
  for (int round = 0; round < 30; ++round) {
    PendingScores pending(scorer.submit(images_of(levels), true, Wanted{}));
    std::atomic<int> right{0}, refused{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        try {
          right += are_scores_of(pending.get(), levels);
        } catch (const InputError&) {
          ++refused;
        }
        if (!pending.done()) ++refused;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(right == 1 && refused == 3);
  }
}

}  // namespace
}  // namespace scrd
