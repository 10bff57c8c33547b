// A network that Python computes, as the scorer asks for one.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "scrd/runner.hpp"

namespace scrd::python {

// Calls `run` with float32 (n, 3, S, S), which gives three distances and the scale weights: four
// float32 arrays. The scorer's threads may use it: it takes the GIL where it needs it.
class PythonRunner final : public Runner {
 public:
  PythonRunner(pybind11::function run, std::size_t size, std::vector<std::size_t> buckets);
  ~PythonRunner() override;

  std::size_t input_size() const override { return size_; }
  std::size_t streams() const override { return 1; }
  const std::vector<std::size_t>& buckets() const override { return buckets_; }
  void start(std::size_t stream, const float* pixels, std::size_t n) override;
  NetworkOutputs wait(std::size_t stream) override;

 private:
  pybind11::object run_, outputs_;  // outputs_ keeps the memory alive until the next call
  const std::size_t size_;
  const std::vector<std::size_t> buckets_;
  const float* pixels_ = nullptr;
  std::size_t n_ = 0;
};

}  // namespace scrd::python
