#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "openvino_runner.hpp"

namespace py = pybind11;

namespace {

// Buffers for a network to keep, which is let go of on any thread.
std::shared_ptr<void> owner_of(std::unique_ptr<std::vector<py::buffer_info>> buffers) {
  return std::shared_ptr<void>(buffers.release(), [](void* p) {
    py::gil_scoped_acquire gil;
    delete static_cast<std::vector<py::buffer_info>*>(p);
  });
}

}  // namespace

PYBIND11_MODULE(_openvino, module) {
  module.doc() = "The runner that links OpenVINO, whose library must be loaded before this module.";
  py::module_::import("scrd_fast._native");  // where Runner is registered

  py::class_<scrd::OpenVinoRunner, scrd::Runner, std::shared_ptr<scrd::OpenVinoRunner>>(
      module, "OpenVinoRunner", "The network compiled by OpenVINO for the CPU.",
      py::release_gil_before_calling_cpp_dtor())
      .def(py::init([](const py::bytes& onnx, const std::map<std::string, py::buffer>& weights,
                       const std::string& precision, std::vector<std::size_t> buckets,
                       bool throughput) {
             const std::string graph = onnx;
             auto held = std::make_unique<std::vector<py::buffer_info>>();
             std::map<std::string, scrd::WeightView> views;
             for (const auto& [name, buffer] : weights) {
               held->push_back(buffer.request());
               const py::buffer_info& bytes = held->back();
               views[name] = {bytes.ptr, static_cast<std::size_t>(bytes.size * bytes.itemsize)};
             }
             std::shared_ptr<void> owner = owner_of(std::move(held));
             py::gil_scoped_release release;
             return std::make_shared<scrd::OpenVinoRunner>(
                 graph, views, std::move(owner), precision, std::move(buckets), throughput);
           }),
           py::arg("onnx"), py::arg("weights"), py::arg("precision"), py::arg("buckets"),
           py::arg("throughput"))
      .def(
          "layers",
          [](const scrd::OpenVinoRunner& runner) {
            py::list layers;
            for (const scrd::Layer& layer : runner.layers()) {
              layers.append(py::make_tuple(layer.name, layer.type, layer.precision));
            }
            return layers;
          },
          "(name, type, precision) of each layer of the compiled graph.");

  module.def("version", &scrd::openvino_version, "OpenVINO's release, as openvino.__version__.");
  module.def("capabilities", &scrd::cpu_capabilities,
             "What OpenVINO computes in natively on this CPU, such as BF16 and INT8.");
}
