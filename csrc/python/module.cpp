#include "module.hpp"

#include <exception>

#include "scrd/error.hpp"
#include "scrd/isa.hpp"
#include "scrd/peak.hpp"
#include "scrd/thread_pool.hpp"

namespace py = pybind11;

namespace {

void raise_as(const char* name, const char* message) {
  const py::object type = py::module_::import("scrd_fast.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native core: operations and the batch scorer. Use them through scrd_fast.";
  // Not local to this module: _openvino and what Python calls through it throw the same errors.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const scrd::NotFiniteError& error) {
      raise_as("NotFiniteError", error.what());
    } catch (const scrd::InputError& error) {
      raise_as("InputError", error.what());
    } catch (const scrd::ClosedError& error) {
      raise_as("ClosedError", error.what());
    } catch (const scrd::OverloadedError& error) {
      raise_as("OverloadedError", error.what());
    } catch (const scrd::CancelledError& error) {
      raise_as("CancelledError", error.what());
    }
  });

  module.def(
      "isas",
      [] {
        py::list names;
        for (scrd::Isa isa : scrd::available_isas()) names.append(scrd::isa_name(isa));
        return names;
      },
      "The instruction sets that this CPU runs, slowest first.");
  module.def(
      "isa", [] { return std::string(scrd::isa_name(scrd::active_isa())); },
      "The instruction set in use.");
  module.def(
      "set_isa", [](const std::string& name) { scrd::set_isa(scrd::isa_from_name(name)); },
      py::arg("name"), "Use this instruction set from now on.");
  module.def("peak_ops", &scrd::peak_ops, py::arg("kind"), py::arg("seconds"),
             py::call_guard<py::gil_scoped_release>(),
             "Operations per second of multiply-add instructions on registers, by all threads; 0 "
             "where none is known for this CPU. kind: fp32, bf16 or int8.");
  module.def("copy_rate", &scrd::copy_rate, py::arg("nbytes"), py::arg("seconds"),
             py::call_guard<py::gil_scoped_release>(),
             "Bytes read plus bytes written per second where all threads copy a block of so many "
             "bytes, again and again for so many seconds: the fastest.");
  module.def(
      "threads", [] { return scrd::shared_pool()->threads(); },
      "Threads that an operation may use, the caller included.");
  module.def("set_threads", &scrd::set_threads, py::arg("threads"),
             py::call_guard<py::gil_scoped_release>(),
             "Let an operation use this many threads, the caller included.");

  scrd::python::bind_add_noise(module);
  scrd::python::bind_anomaly_map(module);
  scrd::python::bind_contrastive_loss(module);
  scrd::python::bind_scorer(module);
  scrd::python::bind_preprocess(module);
  scrd::python::bind_simplex_noise(module);
}
