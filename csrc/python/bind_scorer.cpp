#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "module.hpp"
#include "owner.hpp"
#include "python_runner.hpp"
#include "scrd/pending_scores.hpp"
#include "scrd/scorer.hpp"

namespace scrd::python {
namespace {

py::tuple as_tuple(Scores scores) {
  const auto n = static_cast<py::ssize_t>(scores.n), size = static_cast<py::ssize_t>(scores.size);
  py::object maps = py::none();
  if (scores.maps) maps = take(std::move(scores.maps), {n, size, size});
  py::object distances = py::none();
  if (scores.distances[0]) {
    py::tuple scales(kScales);
    for (std::size_t k = 0; k < kScales; ++k) {
      const auto side = static_cast<py::ssize_t>(scores.sides[k]);
      scales[k] = take(std::move(scores.distances[k]), {n, side, side});
    }
    distances = scales;
  }
  return py::make_tuple(take(std::move(scores.scores), {n}), maps,
                        take(std::move(scores.scale_weights), {n, kScales}), distances);
}

// Called now and then while a thread waits for scores without the GIL, so that Ctrl-C is heard.
void hear_signals() {
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

bool wait(const PendingScores& pending, double seconds) {
  py::gil_scoped_release release;
  return pending.wait(seconds, hear_signals);
}

py::tuple get(PendingScores& pending) {
  Scores scores;
  {
    py::gil_scoped_release release;
    scores = pending.get(hear_signals);
  }
  return as_tuple(std::move(scores));
}

constexpr double kMostGathering = 60;  // seconds

std::unique_ptr<PendingScores> submit(Scorer& scorer, const py::object& batch, bool maps,
                                      bool distances, std::optional<std::size_t> most_waiting,
                                      std::optional<double> gather_for) {
  std::vector<py::array> arrays;
  std::vector<ImageView> images = image_views(batch, "batch", arrays);
  const bool is_batch = py::isinstance<py::array>(batch);
  // A scorer's thread lets go of them where nobody waits for the scores.
  std::shared_ptr<void> owner = own(std::move(arrays));
  const auto cancelled = std::make_shared<std::atomic<bool>>(false);
  Terms terms;
  terms.cancelled = cancelled;
  if (most_waiting) terms.most_waiting = *most_waiting;
  if (gather_for) {
    if (!(*gather_for >= 0 && *gather_for <= kMostGathering)) {
      fail("gather_for", "seconds from 0 to " + std::to_string(kMostGathering),
           std::to_string(*gather_for));
    }
    terms.gathers = true;
    terms.gather_for = std::chrono::nanoseconds(static_cast<std::int64_t>(*gather_for * 1e9));
  }
  py::gil_scoped_release release;
  return std::make_unique<PendingScores>(
      scorer.submit(std::move(images), is_batch, Wanted{maps, distances}, std::move(owner),
                    std::move(terms)),
      cancelled);
}

}  // namespace

void bind_scorer(py::module_& module) {
  py::class_<Runner, std::shared_ptr<Runner>>(module, "Runner", "A compiled network.")
      .def_property_readonly("buckets", &Runner::buckets, "Batch sizes it is compiled for.");
  py::class_<PythonRunner, Runner, std::shared_ptr<PythonRunner>>(
      module, "PythonRunner", "A network that Python computes.",
      py::release_gil_before_calling_cpp_dtor())
      .def(py::init<py::function, std::size_t, std::vector<std::size_t>>(), py::arg("run"),
           py::arg("size"), py::arg("buckets"));
  py::class_<PendingScores>(module, "PendingScores", "Scores that are on their way.")
      .def("cancel", &PendingScores::cancel, "Drop the batch where it still waits.")
      .def("done", &PendingScores::done, "Whether `get` would not wait.")
      .def("wait", &wait, py::arg("seconds"), "Wait this long at most; whether it is done.")
      .def("get", &get,
           "(scores (N,), maps (N, S, S) or None, scale weights (N, 3), three distances (N, h, w)"
           " or None), once.");
  py::class_<Scorer>(module, "Scorer", "Images in, scores and maps out.",
                     py::release_gil_before_calling_cpp_dtor())
      .def(py::init([](std::shared_ptr<Runner> runner, std::size_t size, std::array<float, 3> mean,
                       std::array<float, 3> std, const Tail& tail, bool maximum) {
             return std::make_unique<Scorer>(std::move(runner), PixelSpec{size, mean, std}, tail,
                                             maximum);
           }),
           py::arg("runner"), py::arg("size"), py::arg("mean"), py::arg("std"), py::arg("tail"),
           py::arg("maximum"))
      .def("submit", &submit, py::arg("batch"), py::arg("maps"), py::arg("distances") = false,
           py::arg("most_waiting") = py::none(), py::arg("gather_for") = py::none(),
           "Begin to score an array (N, H, W) or (N, H, W, 3) or a list of (H, W) or (H, W, 3).")
      .def("waiting", &Scorer::waiting, py::call_guard<py::gil_scoped_release>(),
           "Images that wait for the network.")
      .def("executions", &Scorer::executions, "Batches that were given to the network so far.")
      .def("close", &Scorer::close, py::call_guard<py::gil_scoped_release>(),
           "Finish what was submitted, then let go of threads and runner.");
}

}  // namespace scrd::python
