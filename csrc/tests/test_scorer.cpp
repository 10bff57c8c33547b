#include <atomic>
#include <chrono>
#include <future>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "first_pixel.hpp"
#include "scrd/error.hpp"
#include "scrd/scorer.hpp"

namespace scrd {
namespace {

TEST(batches_of_every_length_are_scored) {
  auto runner = std::make_shared<FirstPixel>();
  Scorer scorer = scorer_of(runner);
  for (std::size_t n : {1, 2, 4, 5, 11}) {
    const std::vector<float> levels = levels_of(n, n);
    for (bool maps : {false, true}) {
      const int before = runner->pieces;
      const auto scores = scorer.score(images_of(levels), true, Wanted{maps});
      CHECK(are_scores_of(*scores, levels));
      CHECK((scores->maps != nullptr) == maps);
      CHECK(runner->pieces - before == static_cast<int>(n / 4 + n % 4));
    }
  }
}

TEST(distances_come_with_the_scores_where_they_are_wanted) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
  const std::vector<float> levels = levels_of(6, 1);
  const auto scores = scorer.score(images_of(levels), true, Wanted{false, true});
  CHECK(are_scores_of(*scores, levels));
  CHECK(scores->maps == nullptr);
  CHECK(scores->sides == kSides);
  for (int k = 0; k < kScales; ++k) {
    const std::size_t values = kSides[k] * kSides[k];
    bool right = scores->distances[k] != nullptr;
    for (std::size_t i = 0; right && i < levels.size() * values; ++i) {
      right = scores->distances[k][i] == levels[i / values];
    }
    CHECK(right);
  }
  CHECK(scorer.score(images_of(levels), true, Wanted{})->distances[0] == nullptr);
}

TEST(many_threads_get_their_own_scores_from_any_number_of_streams) {
  for (std::size_t streams : {1, 3}) {
    Scorer scorer = scorer_of(std::make_shared<FirstPixel>(streams));
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 8; ++t) {
      threads.emplace_back([&scorer, &wrong, t] {
        for (std::size_t call = 0; call < 30; ++call) {
          const std::vector<float> one = levels_of(1 + call % 6, 100 * t + call);
          const std::vector<float> two = levels_of(2, 7 * t + call);
          Scorer::Future first = scorer.submit(images_of(one), true, Wanted{call % 2 == 0});
          Scorer::Future second = scorer.submit(images_of(two), true, Wanted{});
          wrong += !are_scores_of(*second.get(), two);
          wrong += !are_scores_of(*first.get(), one);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
  }
}

TEST(an_error_of_the_network_reaches_its_batch_only) {
  auto runner = std::make_shared<FirstPixel>();
  runner->fails_on = 0.5f;
  Scorer scorer = scorer_of(runner);
  const std::vector<float> good{0.25f, 0.75f}, bad{0.25f, 0.5f};
  std::vector<Scorer::Future> futures;
  for (int i = 0; i < 6; ++i)
    futures.push_back(scorer.submit(images_of(i % 2 ? bad : good), true, Wanted{}));
  for (int i = 0; i < 6; ++i) {
    if (i % 2) {
      CHECK_THROWS(Torn, "the network tore", futures[i].get());
    } else {
      CHECK(are_scores_of(*futures[i].get(), good));
    }
  }
}

TEST(the_owner_comes_back_with_the_scores) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
  const std::vector<float> levels{0.5f};
  auto owner = std::make_shared<int>(7);
  const std::weak_ptr<int> watch = owner;
  auto scores = scorer.submit(images_of(levels), true, Wanted{false}, std::move(owner)).get();
  CHECK(watch.lock() == scores->owner);
  scores.reset();
  CHECK(watch.expired());
}

TEST(closing_finishes_what_was_submitted) {
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>(2));
  const std::vector<float> levels = levels_of(9, 3);
  std::vector<Scorer::Future> futures;
  for (int i = 0; i < 20; ++i) futures.push_back(scorer.submit(images_of(levels), true, Wanted{}));
  scorer.close();
  for (Scorer::Future& future : futures) {
    CHECK(future.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    CHECK(are_scores_of(*future.get(), levels));
  }
  CHECK_THROWS(ClosedError, "scorer: expected an open one, got one after close()",
               scorer.submit(images_of(levels), true, Wanted{}));
  scorer.close();
}

TEST(threads_may_submit_while_another_closes) {
  const std::vector<float> levels = levels_of(3, 4);
  for (int round = 0; round < 20; ++round) {
    Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        try {
          while (true)
            wrong += !are_scores_of(*scorer.score(images_of(levels), true, Wanted{}), levels);
        } catch (const ClosedError&) {  // what ends this thread
        }
      });
    }
    scorer.close();
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
  }
}

// A runner that closes its scorer from inside, as a garbage collector in a Python runner can.
class ClosesItsScorer : public FirstPixel {
 public:
  NetworkOutputs wait(std::size_t stream) override {
    if (Scorer* mine = scorer.exchange(nullptr)) delete mine;
    return FirstPixel::wait(stream);
  }
  std::atomic<Scorer*> scorer{nullptr};
};

TEST(a_scorer_may_be_destroyed_by_its_own_thread) {
  const std::vector<float> levels = levels_of(6, 8);
  for (int round = 0; round < 20; ++round) {
    auto runner = std::make_shared<ClosesItsScorer>();
    auto* scorer = new Scorer(runner, PixelSpec{kSize, {0, 0, 0}, {1, 1, 1}},
                              Tail(kSize, kSides, 2.0, false), false);
    Scorer::Future first = scorer->submit(images_of(levels), true, Wanted{});
    Scorer::Future second = scorer->submit(images_of(levels), true, Wanted{});
    runner->scorer = scorer;
    CHECK(are_scores_of(*second.get(), levels));
    CHECK(are_scores_of(*first.get(), levels));
    // Where the network was done before it could close the scorer, it is for this thread to do.
    if (Scorer* left = runner->scorer.exchange(nullptr)) delete left;
  }
}

TEST(arguments_of_a_scorer_that_do_not_fit) {
  CHECK_THROWS(InputError, "runner: expected a runner, got none", scorer_of(nullptr));
  CHECK_THROWS(InputError, "buckets: expected batch sizes rising from 1, got others",
               scorer_of(std::make_shared<FirstPixel>(1, std::vector<std::size_t>{2, 4})));
  CHECK_THROWS(InputError, "tail: expected a map of side 64 as the network's input, got 32",
               Scorer(std::make_shared<FirstPixel>(), PixelSpec{64, {0, 0, 0}, {1, 1, 1}},
                      Tail(kSize, kSides, 2.0, false), false));
  CHECK_THROWS(InputError, "runner: expected a network for pixels of side 64, got 32",
               Scorer(std::make_shared<FirstPixel>(), PixelSpec{64, {0, 0, 0}, {1, 1, 1}},
                      Tail(64, {16, 8, 4}, 2.0, false), false));
  Scorer scorer = scorer_of(std::make_shared<FirstPixel>());
  CHECK_THROWS(InputError, "batch: expected at least one image, got none",
               scorer.submit({}, true, Wanted{}));
  const std::vector<float> bad{0.5f, std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS(NotFiniteError, "batch[1]: expected finite values, got nan at index (0, 0)",
               scorer.submit(images_of(bad), false, Wanted{}));
}

}  // namespace
}  // namespace scrd
