// Python's objects as C++ keeps them beyond the call that brought them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

namespace scrd::python {

// An owner of something that holds Python objects; any thread may let go of it, with the GIL or
// without.
template <typename T>
std::shared_ptr<void> own(T held) {
  return std::shared_ptr<void>(new T(std::move(held)), [](void* p) {
    pybind11::gil_scoped_acquire gil;
    delete static_cast<T*>(p);
  });
}

}  // namespace scrd::python
