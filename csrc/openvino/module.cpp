#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "../python/owner.hpp"
#include "openvino_runner.hpp"

namespace py = pybind11;

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
             std::vector<py::buffer_info> held;
             std::map<std::string, scrd::WeightView> views;
             for (const auto& [name, buffer] : weights) {
               const py::buffer_info& bytes = held.emplace_back(buffer.request());
               views[name] = {bytes.ptr, static_cast<std::size_t>(bytes.size * bytes.itemsize)};
             }
             std::shared_ptr<void> owner = scrd::python::own(std::move(held));
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
