#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "scrd/error.hpp"
#include "scrd/scorer.hpp"

namespace scrd {
namespace {

constexpr std::size_t kSize = 32;
const std::array<std::size_t, kScales> kSides{8, 4, 2};

// Without a string: std::runtime_error counts its string's owners inside libstdc++, out of the
// thread sanitizer's sight.
struct Torn : std::exception {
  const char* what() const noexcept override { return "the network tore"; }
};

// In place of a network: every distance of an image is its first pixel. It computes in a thread of
// its own between start and wait, as a real one does, so that a race over the pixels is a race.
class FirstPixel : public Runner {
 public:
  explicit FirstPixel(std::size_t streams = 1, std::vector<std::size_t> buckets = {1, 4})
      : buckets_(std::move(buckets)), streams_(streams) {}

  std::size_t input_size() const override { return kSize; }
  std::size_t streams() const override { return streams_.size(); }
  const std::vector<std::size_t>& buckets() const override { return buckets_; }

  void start(std::size_t stream, const float* pixels, std::size_t n) override {
    pieces.fetch_add(1);
    Stream& s = streams_[stream];
    s.running = std::async(std::launch::async, [this, &s, pixels, n] {
      for (int k = 0; k < kScales; ++k) s.distances[k].clear();
      for (std::size_t i = 0; i < n; ++i) {
        const float value = pixels[i * 3 * kSize * kSize];
        if (value == fails_on) throw Torn();
        for (int k = 0; k < kScales; ++k) {
          s.distances[k].insert(s.distances[k].end(), kSides[k] * kSides[k], value);
        }
      }
      s.weights.assign(n * kScales, 1.0f / 3);
    });
  }

  NetworkOutputs wait(std::size_t stream) override {
    Stream& s = streams_[stream];
    s.running.get();
    NetworkOutputs outputs;
    for (int k = 0; k < kScales; ++k) {
      outputs.distances[k] = {s.distances[k].data(), s.distances[k].size()};
    }
    outputs.scale_weights = {s.weights.data(), s.weights.size()};
    return outputs;
  }

  std::atomic<int> pieces{0};
  float fails_on = -1;

 private:
  struct Stream {
    std::future<void> running;
    std::array<std::vector<float>, kScales> distances;
    std::vector<float> weights;
  };
  const std::vector<std::size_t> buckets_;
  std::vector<Stream> streams_;
};

Scorer scorer_of(std::shared_ptr<Runner> runner) {
  return Scorer(std::move(runner), PixelSpec{kSize, {0, 0, 0}, {1, 1, 1}},
                Tail(kSize, kSides, 2.0, false), false);
}

// Grey images of one pixel each, of these levels.
std::vector<ImageView> images_of(const std::vector<float>& levels) {
  std::vector<ImageView> images;
  for (const float& level : levels) {
    ImageView image;
    image.data = &level;
    image.dtype = DType::f32;
    image.height = image.width = image.channels = 1;
    images.push_back(image);
  }
  return images;
}

bool are_scores_of(const Scores& scores, const std::vector<float>& levels) {
  bool right = scores.n == levels.size() && scores.size == kSize;
  for (std::size_t i = 0; right && i < levels.size(); ++i) {
    right = std::abs(scores.scores[i] - 3 * levels[i]) < 1e-5;
    for (std::size_t p = 0; right && scores.maps && p < kSize * kSize; ++p) {
      right = std::abs(scores.maps[i * kSize * kSize + p] - 3 * levels[i]) < 1e-5;
    }
  }
  return right;
}

std::vector<float> levels_of(std::size_t n, std::size_t seed) {
  test::Random random(seed);
  std::vector<float> levels(n);
  for (float& level : levels) level = static_cast<float>(random.uniform());
  return levels;
}

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

// A network that gives nothing before it is told to.
class HeldBack : public FirstPixel {
 public:
  using FirstPixel::FirstPixel;
  NetworkOutputs wait(std::size_t stream) override {
    is_waited_for = true;
    released_.wait_for(std::chrono::seconds(60));
    return FirstPixel::wait(stream);
  }
  std::promise<void> release;
  std::atomic<bool> is_waited_for{false};

 private:
  std::future<void> released_ = release.get_future();
};

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
