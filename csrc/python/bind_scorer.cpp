#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <limits>
#include <string>

#include "arrays.hpp"
#include "module.hpp"
#include "scrd/scorer.hpp"

namespace scrd::python {
namespace {

// A network that Python computes: called with float32 (n, 3, S, S), gives four float32 arrays.
class PythonRunner final : public Runner {
 public:
  PythonRunner(py::function run, std::size_t size, std::vector<std::size_t> buckets)
      : run_(std::move(run)), size_(size), buckets_(std::move(buckets)) {}

  ~PythonRunner() override {
    py::gil_scoped_acquire gil;
    outputs_.release().dec_ref();
    run_.release().dec_ref();
  }

  std::size_t input_size() const override { return size_; }
  std::size_t streams() const override { return 1; }
  const std::vector<std::size_t>& buckets() const override { return buckets_; }

  void start(std::size_t, const float* pixels, std::size_t n) override {
    pixels_ = pixels;
    n_ = static_cast<py::ssize_t>(n);
  }

  NetworkOutputs wait(std::size_t) override {
    py::gil_scoped_acquire gil;
    const auto size = static_cast<py::ssize_t>(size_);
    // A copy: Python may keep the array, in a traceback for one, longer than these pixels last.
    outputs_ = run_(py::array_t<float>({n_, py::ssize_t{3}, size, size}, pixels_));
    const auto arrays = outputs_.cast<std::vector<py::array>>();
    if (arrays.size() != kScales + 1) fail("network", "four arrays", std::to_string(arrays.size()));
    const auto values = [&arrays](std::size_t k) {
      const py::array& a = arrays[k];
      const std::vector<py::ssize_t> shape(static_cast<std::size_t>(a.ndim()), -1);
      return NetworkOutputs::Values{
          contiguous<float>(a, "network[" + std::to_string(k) + "]", shape, "values"),
          static_cast<std::size_t>(a.size())};
    };
    NetworkOutputs outputs;
    for (std::size_t k = 0; k < kScales; ++k) outputs.distances[k] = values(k);
    outputs.scale_weights = values(kScales);
    return outputs;
  }

 private:
  py::object run_, outputs_;  // outputs_ keeps the memory alive until the next call
  const std::size_t size_;
  const std::vector<std::size_t> buckets_;
  const float* pixels_ = nullptr;
  py::ssize_t n_ = 0;
};

py::tuple as_tuple(Scores scores) {
  const auto n = static_cast<py::ssize_t>(scores.n), size = static_cast<py::ssize_t>(scores.size);
  py::object maps = py::none();
  if (scores.maps) maps = take(std::move(scores.maps), {n, size, size});
  return py::make_tuple(take(std::move(scores.scores), {n}), maps,
                        take(std::move(scores.scale_weights), {n, kScales}));
}

// Arrays for a scorer's thread to keep, and to let go of where nobody waits for the scores.
std::shared_ptr<void> owner_of(std::vector<py::array> arrays) {
  return std::shared_ptr<void>(new std::vector<py::array>(std::move(arrays)), [](void* p) {
    py::gil_scoped_acquire gil;
    delete static_cast<std::vector<py::array>*>(p);
  });
}

class PendingScores {
 public:
  explicit PendingScores(Scorer::Future future) : future_(std::move(future)) {}

  bool done() {
    return !future_.valid() ||
           future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

  // Waits in slices, so that Ctrl-C is heard.
  bool wait(double seconds) {
    if (!(seconds >= 0)) fail("timeout", "seconds from 0", std::to_string(seconds));
    if (process_ != getpid()) {
      throw ClosedError("result: expected the process that submitted the batch, got a fork of it");
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!done()) {
      const std::chrono::duration<double> left = end - std::chrono::steady_clock::now();
      if (left.count() <= 0) return false;
      {
        py::gil_scoped_release release;
        future_.wait_for(
            std::min<std::chrono::duration<double>>(left, std::chrono::milliseconds(100)));
      }
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return true;
  }

  py::tuple get() {
    if (!future_.valid()) fail("get", "to be called once", "a second call");
    wait(std::numeric_limits<double>::infinity());
    return as_tuple(std::move(*future_.get()));
  }

 private:
  Scorer::Future future_;
  pid_t process_ = getpid();
};

PendingScores submit(Scorer& scorer, const py::object& batch, bool maps) {
  std::vector<py::array> arrays;
  std::vector<ImageView> images = image_views(batch, "batch", arrays);
  const bool is_batch = py::isinstance<py::array>(batch);
  std::shared_ptr<void> owner = owner_of(std::move(arrays));
  py::gil_scoped_release release;
  return PendingScores(scorer.submit(std::move(images), is_batch, maps, std::move(owner)));
}

}  // namespace

void bind_scorer(py::module_& module) {
  py::class_<Runner, std::shared_ptr<Runner>>(module, "Runner", "A compiled network.")
      .def_property_readonly("streams", &Runner::streams, "Requests that run at a time.")
      .def_property_readonly("buckets", &Runner::buckets, "Batch sizes it is compiled for.");
  py::class_<PythonRunner, Runner, std::shared_ptr<PythonRunner>>(
      module, "PythonRunner", "A network that Python computes.",
      py::release_gil_before_calling_cpp_dtor())
      .def(py::init<py::function, std::size_t, std::vector<std::size_t>>(), py::arg("run"),
           py::arg("size"), py::arg("buckets"));
  py::class_<PendingScores>(module, "PendingScores", "Scores that are on their way.")
      .def("done", &PendingScores::done, "Whether `get` would not wait.")
      .def("wait", &PendingScores::wait, py::arg("seconds"),
           "Wait this long at most; whether it is done.")
      .def("get", &PendingScores::get,
           "(scores (N,), maps (N, S, S) or None, scale weights (N, 3)), once.");
  py::class_<Scorer>(module, "Scorer", "Images in, scores and maps out.",
                     py::release_gil_before_calling_cpp_dtor())
      .def(py::init([](std::shared_ptr<Runner> runner, std::size_t size, std::array<float, 3> mean,
                       std::array<float, 3> std, const Tail& tail, bool maximum) {
             return std::make_unique<Scorer>(std::move(runner), PixelSpec{size, mean, std}, tail,
                                             maximum);
           }),
           py::arg("runner"), py::arg("size"), py::arg("mean"), py::arg("std"), py::arg("tail"),
           py::arg("maximum"))
      .def("submit", &submit, py::arg("batch"), py::arg("maps"),
           "Begin to score an array (N, H, W) or (N, H, W, 3) or a list of (H, W) or (H, W, 3).")
      .def("close", &Scorer::close, py::call_guard<py::gil_scoped_release>(),
           "Finish what was submitted, then let go of threads and runner.");
}

}  // namespace scrd::python
