// The parts of the extension module `_native`, one per file.
#pragma once

#include <pybind11/pybind11.h>

namespace scrd::python {

void bind_add_noise(pybind11::module_& module);
void bind_anomaly_map(pybind11::module_& module);
void bind_contrastive_loss(pybind11::module_& module);
void bind_scorer(pybind11::module_& module);
void bind_preprocess(pybind11::module_& module);
void bind_simplex_noise(pybind11::module_& module);

}  // namespace scrd::python
