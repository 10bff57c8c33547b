#include "openvino_runner.hpp"

#include <cstdint>
#include <openvino/op/constant.hpp>
#include <openvino/op/parameter.hpp>
#include <utility>

#include "scrd/error.hpp"

namespace scrd {
namespace {

// One for the process, never destroyed: the order of destruction at exit is not ours to choose.
ov::Core& core() {
  static ov::Core* shared = new ov::Core;
  return *shared;
}

// Throws InputError unless the outputs are three distances (n, h, w), or three features of the
// teacher and three of the student (n, C, h, w), and then the scale weights (n, 3).
void check_outputs(const ov::Model& model, bool features) {
  const std::size_t maps = features ? 2 * kScales : kScales;
  const std::int64_t rank = features ? 4 : 3;
  bool good = model.outputs().size() == maps + 1;
  for (std::size_t i = 0; good && i <= maps; ++i) {
    const ov::Output<const ov::Node> output = model.output(i);
    const ov::PartialShape shape = output.get_partial_shape();
    good = output.get_element_type() == ov::element::f32 && shape.is_static() &&
           shape.rank().get_length() == (i < maps ? rank : 2) &&
           (i < maps || shape[1].get_length() == static_cast<std::int64_t>(kScales));
  }
  if (!good) fail("onnx", "outputs of a network", "others");
}

// Features leave the network as bfloat16, channels last: the form in which it computes them.
void hand_out_features(std::shared_ptr<ov::Model>& model) {
  ov::preprocess::PrePostProcessor processor(model);
  for (std::size_t i = 0; i < 2 * kScales; ++i) {
    ov::preprocess::OutputInfo& output = processor.output(i);
    output.model().set_layout("NCHW");
    output.tensor().set_layout("NHWC").set_element_type(ov::element::bf16);
  }
  model = processor.build();
}

// A bfloat16 (n, h, w, C) tensor.
FeatureView feature_view(const ov::Tensor& tensor) {
  const ov::Shape shape = tensor.get_shape();
  FeatureView view;
  view.data = tensor.data<ov::bfloat16>();
  view.dtype = DType::bf16;
  view.n = shape.at(0), view.height = shape.at(1), view.width = shape.at(2);
  view.channels = shape.at(3);
  const auto channels = static_cast<std::ptrdiff_t>(view.channels);
  const auto width = static_cast<std::ptrdiff_t>(view.width);
  const auto height = static_cast<std::ptrdiff_t>(view.height);
  view.strides[0] = height * width * channels, view.strides[1] = 1;
  view.strides[2] = width * channels, view.strides[3] = channels;
  return view;
}

// Puts weights in the place of the inputs that stand for them. They are read where they lie.
void fill_in(ov::Model& model, const std::map<std::string, WeightView>& weights,
             const std::shared_ptr<void>& owner) {
  const ov::ParameterVector inputs = model.get_parameters();
  std::size_t filled = 0;
  for (const std::shared_ptr<ov::op::v0::Parameter>& input : inputs) {
    const auto found = weights.find(input->get_friendly_name());
    if (found == weights.end()) continue;
    const WeightView& weight = found->second;
    const ov::PartialShape shape = input->get_partial_shape();
    const ov::element::Type type = input->get_element_type();
    if (shape.is_dynamic() || ov::shape_size(shape.to_shape()) * type.size() != weight.size) {
      fail("onnx", "inputs of the size of their weights", "another");
    }
    const auto constant =
        std::make_shared<ov::op::v0::Constant>(type, shape.to_shape(), weight.data, owner);
    constant->set_friendly_name(input->get_friendly_name());
    ov::replace_node(input, constant);
    model.remove_parameter(input);
    ++filled;
  }
  if (filled != weights.size() || model.get_parameters().size() != 1) {
    fail("onnx", "one input besides those of the weights", "others");
  }
}

}  // namespace

OpenVinoRunner::OpenVinoRunner(const std::string& onnx,
                               const std::map<std::string, WeightView>& weights,
                               std::shared_ptr<void> owner, const std::string& precision,
                               std::vector<std::size_t> buckets, bool throughput)
    : properties_{ov::hint::performance_mode(throughput ? ov::hint::PerformanceMode::THROUGHPUT
                                                        : ov::hint::PerformanceMode::LATENCY),
                  ov::hint::inference_precision(precision == "bf16" ? ov::element::bf16
                                                                    : ov::element::f32)},
      buckets_(std::move(buckets)) {
  if (buckets_.empty() || buckets_[0] != 1) fail("buckets", "batch sizes rising from 1", "others");
  std::shared_ptr<ov::Model> model = core().read_model(onnx, ov::Tensor());
  fill_in(*model, weights, owner);
  features_ = model->outputs().size() > kScales + 1;
  model_ = std::move(model);
  single_ = compile(1);
  const ov::Shape input = single_.input().get_shape();
  if (input.size() != 4 || input[1] != 3 || input[2] != input[3] ||
      single_.input().get_element_type() != ov::element::f32) {
    fail("onnx", "an input of float32 (batch, 3, S, S)", "another");
  }
  input_size_ = input[2];
  streams_.resize(throughput ? single_.get_property(ov::optimal_number_of_infer_requests) : 1);
  for (Stream& stream : streams_) {
    stream.requests.resize(buckets_.size());
    stream.requests[0] = single_.create_infer_request();
  }
}

ov::CompiledModel OpenVinoRunner::compile(std::size_t n) const {
  std::shared_ptr<ov::Model> model = model_->clone();
  // A batch size known in advance: the first layers run up to a third faster than with any.
  ov::PartialShape shape = model->input().get_partial_shape();
  shape[0] = static_cast<ov::Dimension::value_type>(n);
  model->reshape(shape);
  check_outputs(*model, features_);
  if (features_) hand_out_features(model);
  return core().compile_model(model, "CPU", properties_);
}

void OpenVinoRunner::start(std::size_t stream, const float* pixels, std::size_t n) {
  Stream& s = streams_[stream];
  s.active = 0;
  while (buckets_[s.active] != n) ++s.active;
  ov::InferRequest& request = s.requests[s.active];
  if (!request) request = compile(n).create_infer_request();
  // The network reads the pixels where they are; it does not write to its input.
  request.set_input_tensor(
      ov::Tensor(ov::element::f32, {n, 3, input_size_, input_size_}, const_cast<float*>(pixels)));
  request.start_async();
}

NetworkOutputs OpenVinoRunner::wait(std::size_t stream) {
  Stream& s = streams_[stream];
  ov::InferRequest& request = s.requests[s.active];
  request.wait();
  const auto values = [&request](std::size_t index) {
    const ov::Tensor tensor = request.get_output_tensor(index);
    return NetworkOutputs::Values{tensor.data<float>(), tensor.get_size()};
  };
  NetworkOutputs outputs;
  for (std::size_t k = 0; k < kScales; ++k) {
    if (features_) {
      outputs.teacher[k] = feature_view(request.get_output_tensor(k));
      outputs.student[k] = feature_view(request.get_output_tensor(kScales + k));
    } else {
      outputs.distances[k] = values(k);
    }
  }
  outputs.scale_weights = values(features_ ? 2 * kScales : kScales);
  return outputs;
}

std::vector<Layer> OpenVinoRunner::layers() const {
  std::vector<Layer> layers;
  for (const std::shared_ptr<ov::Node>& node : single_.get_runtime_model()->get_ordered_ops()) {
    const ov::RTMap& info = node->get_rt_info();
    layers.push_back({node->get_friendly_name(), info.at("layerType").as<std::string>(),
                      info.at("runtimePrecision").as<std::string>()});
  }
  return layers;
}

std::string openvino_version() { return ov::get_openvino_version().buildNumber; }

std::vector<std::string> cpu_capabilities() {
  return core().get_property("CPU", ov::device::capabilities);
}

}  // namespace scrd
