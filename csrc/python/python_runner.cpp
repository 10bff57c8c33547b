#include "python_runner.hpp"

#include <string>
#include <utility>

#include "arrays.hpp"
#include "scrd/error.hpp"

namespace scrd::python {
namespace {

// The values of an array of any shape, which fail as `name` unless they are float32 in one piece.
NetworkOutputs::Values values_of(const py::array& array, const std::string& name) {
  const std::vector<py::ssize_t> any_shape(static_cast<std::size_t>(array.ndim()), -1);
  return {contiguous<float>(array, name, any_shape, "values"),
          static_cast<std::size_t>(array.size())};
}

}  // namespace

PythonRunner::PythonRunner(py::function run, std::size_t size, std::vector<std::size_t> buckets)
    : run_(std::move(run)), size_(size), buckets_(std::move(buckets)) {}

PythonRunner::~PythonRunner() {
  py::gil_scoped_acquire gil;
  outputs_.release().dec_ref();
  run_.release().dec_ref();
}

void PythonRunner::start(std::size_t, const float* pixels, std::size_t n) {
  pixels_ = pixels;
  n_ = n;
}

// The network runs here, not in start: it has one stream, whose thread has nothing else to do.
NetworkOutputs PythonRunner::wait(std::size_t) {
  py::gil_scoped_acquire gil;
  // A copy: Python may keep the array, in a traceback for one, longer than these pixels last.
  outputs_ = run_(py::array_t<float>({n_, kPixelChannels, size_, size_}, pixels_));
  const auto arrays = outputs_.cast<std::vector<py::array>>();
  if (arrays.size() != kScales + 1) fail("network", "four arrays", std::to_string(arrays.size()));
  const auto values = [&arrays](std::size_t k) {
    return values_of(arrays[k], "network[" + std::to_string(k) + "]");
  };
  NetworkOutputs outputs;
  for (std::size_t k = 0; k < kScales; ++k) outputs.distances[k] = values(k);
  outputs.scale_weights = values(kScales);
  return outputs;
}

}  // namespace scrd::python
