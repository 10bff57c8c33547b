#include "scrd/contrastive_loss.hpp"

#include <algorithm>
#include <vector>

#include "scrd/thread_pool.hpp"

#define SCRD_BODY "contrastive_loss.inl"
#include "each_isa.hpp"

namespace scrd {
namespace {

// Elements of one map in a task: some 100 tasks at the published size, of some 50 us each.
constexpr std::size_t kTaskElements = 65536;

struct Task {
  std::size_t image;
  int scale;
  std::size_t begin, end;  // elements, from the batch's first
};

std::vector<Task> tasks_of(const std::array<LossMaps, kScales>& maps, std::size_t n) {
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < n; ++i) {
    for (int k = 0; k < kScales; ++k) {
      const std::size_t size = maps[k].size, first = i * size;
      for (std::size_t at = 0; at < size; at += kTaskElements) {
        tasks.push_back({i, k, first + at, first + std::min(at + kTaskElements, size)});
      }
    }
  }
  return tasks;
}

}  // namespace

void contrastive_sums(const std::array<LossMaps, kScales>& maps, std::size_t n, double* sums) {
  const std::vector<Task> tasks = tasks_of(maps, n);
  std::vector<std::array<double, kLossSums>> parts(tasks.size(), {0, 0, 0, 0, 0});
  const auto run = SCRD_PICK(loss_sums);
  shared_pool()->for_each(tasks.size(), [&](std::size_t t) {
    run(maps[tasks[t].scale], tasks[t].begin, tasks[t].end, parts[t].data());
  });
  std::fill(sums, sums + n * kScales * kLossSums, 0.0);
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    double* of = sums + (tasks[t].image * kScales + tasks[t].scale) * kLossSums;
    for (int k = 0; k < kLossSums; ++k) of[k] += parts[t][k];
  }
}

void contrastive_gradient(const std::array<LossMaps, kScales>& maps, std::size_t n,
                          const double* factors, const std::array<void*, kScales>& gradients) {
  const std::vector<Task> tasks = tasks_of(maps, n);
  const auto run = SCRD_PICK(loss_gradient);
  shared_pool()->for_each(tasks.size(), [&](std::size_t t) {
    const Task& task = tasks[t];
    const double* of = factors + (task.image * kScales + task.scale) * 3;
    const float rounded[3] = {static_cast<float>(of[0]), static_cast<float>(of[1]),
                              static_cast<float>(of[2])};
    run(maps[task.scale], task.begin, task.end, rounded, gradients[task.scale]);
  });
}

}  // namespace scrd
