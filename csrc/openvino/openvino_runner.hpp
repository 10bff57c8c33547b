// The network compiled by OpenVINO for the CPU.
#pragma once

#include <map>
#include <memory>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

#include "scrd/runner.hpp"

namespace scrd {

// What a layer of the compiled graph is and computes in: a runtime may ignore a hint.
struct Layer {
  std::string name, type, precision;
};

// The bytes of a weight, as the graph's input of that name has its type and shape.
struct WeightView {
  const void* data = nullptr;
  std::size_t size = 0;
};

class OpenVinoRunner final : public Runner {
 public:
  // onnx: the serialised graph with an input (batch, 3, S, S) besides one for each of the weights,
  // and, as outputs in this order, three distances, or three teacher and three student maps, then
  // the scale weights; weights: by name, read where they lie, which is what `owner` keeps;
  // precision: OpenVINO's inference precision hint (f32, bf16); buckets: batch sizes rising from 1,
  // each compiled on its own: 1 at once, a larger one when it is first needed, as its weights
  // take as much memory again; throughput: several streams that share out the cores instead of one
  // that has all, for batches of 1 alone. Throws ov::Exception.
  OpenVinoRunner(const std::string& onnx, const std::map<std::string, WeightView>& weights,
                 std::shared_ptr<void> owner, const std::string& precision,
                 std::vector<std::size_t> buckets, bool throughput);

  std::size_t input_size() const override { return input_size_; }
  std::size_t streams() const override { return streams_.size(); }
  const std::vector<std::size_t>& buckets() const override { return buckets_; }
  void start(std::size_t stream, const float* pixels, std::size_t n) override;
  NetworkOutputs wait(std::size_t stream) override;

  std::vector<Layer> layers() const;

 private:
  struct Stream {
    std::vector<ov::InferRequest> requests;  // one per bucket, empty until it is needed
    std::size_t active = 0;                  // the bucket that start chose
  };

  ov::CompiledModel compile(std::size_t n) const;

  ov::AnyMap properties_;
  std::shared_ptr<const ov::Model> model_;  // of any batch size
  std::vector<std::size_t> buckets_;
  ov::CompiledModel single_;  // of batches of 1
  std::vector<Stream> streams_;
  std::size_t input_size_ = 0;
  bool features_ = false;
};

std::string openvino_version();

// What OpenVINO computes in natively on this CPU, in its names: FP32, BF16, INT8 and others.
std::vector<std::string> cpu_capabilities();

}  // namespace scrd
