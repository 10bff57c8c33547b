// From Python objects to views. The checks that need Python's types are here, all others in the
// library.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "scrd/anomaly_map.hpp"
#include "scrd/error.hpp"
#include "scrd/preprocess.hpp"
#include "scrd/tensor.hpp"

namespace scrd::python {

namespace py = pybind11;

// Owns memory that NumPy arrays look at.
template <typename T>
py::array_t<T> take(std::unique_ptr<T[]> memory, std::vector<py::ssize_t> shape) {
  T* data = memory.release();
  py::capsule owner(data, [](void* p) { delete[] static_cast<T*>(p); });
  return py::array_t<T>(std::move(shape), data, owner);
}

inline std::string shape_of(const py::array& array) {
  return py::cast<std::string>(py::str(array.attr("shape")));
}

inline std::string dtype_of(const py::array& array) {
  return py::cast<std::string>(py::str(array.dtype()));
}

// An array whose memory can be read in place.
inline py::array as_array(const py::handle& value, const std::string& name) {
  if (!py::isinstance<py::array>(value)) {
    fail(name, "a NumPy array", py::cast<std::string>(py::type::of(value).attr("__name__")));
  }
  auto array = py::reinterpret_borrow<py::array>(value);
  // NumPy's own flag and letter: to ask its objects takes four of a small map's 18 microseconds.
  const bool aligned = array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (!aligned) fail(name, "memory aligned to its dtype", "a misaligned array");
  constexpr char kSwapped = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '>' : '<';
  if (array.dtype().byteorder() == kSwapped) {
    fail(name, "the machine's byte order", dtype_of(array));
  }
  return array;
}

// The array as it is where it is T, C-contiguous and of this shape (-1: any length).
template <typename T>
const T* contiguous(const py::array& array, const std::string& name,
                    const std::vector<py::ssize_t>& shape, const std::string& shape_text) {
  bool fits = py::isinstance<py::array_t<T>>(array) &&
              array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t d = 0; fits && d < shape.size(); ++d) {
    fits = shape[d] < 0 || array.shape(static_cast<py::ssize_t>(d)) == shape[d];
  }
  if (!fits) {
    fail(name, py::cast<std::string>(py::str(py::dtype::of<T>())) + " " + shape_text,
         dtype_of(array) + " " + shape_of(array));
  }
  if (!(array.flags() & py::array::c_style)) fail(name, "C-contiguous memory", "a strided array");
  return static_cast<const T*>(array.data());
}

using FeatureArrays = std::array<py::array, kScales>;

// The arrays of three scales.
inline FeatureArrays three(const py::sequence& values, const char* name) {
  if (values.size() != kScales) {
    fail(name, "three feature maps", std::to_string(values.size()));
  }
  FeatureArrays arrays;
  for (int k = 0; k < kScales; ++k) {
    arrays[k] = as_array(values[k], std::string(name) + "[" + std::to_string(k) + "]");
  }
  return arrays;
}

inline DType feature_dtype(const py::array& array, const std::string& name) {
  if (py::isinstance<py::array_t<float>>(array)) return DType::f32;
  if (py::isinstance<py::array_t<std::uint16_t>>(array)) return DType::bf16;
  fail(name, "dtype float32, or uint16 with the bits of bfloat16", dtype_of(array));
}

// The images of one array (N, H, W) or (N, H, W, 3), or of a sequence of arrays (H, W) or
// (H, W, 3) of any sizes and dtypes, as they lie in memory: any strides, any alignment, read-only
// or not. `owners` gets the arrays that must outlive the views. All have passed check_image.
std::vector<ImageView> image_views(const py::object& images, const std::string& name,
                                   std::vector<py::array>& owners);

}  // namespace scrd::python
