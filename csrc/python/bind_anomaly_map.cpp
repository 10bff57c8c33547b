#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "module.hpp"

namespace scrd::python {
namespace {

std::array<FeatureView, kScales> feature_views(const FeatureArrays& arrays, const char* name) {
  std::array<FeatureView, kScales> views;
  for (int k = 0; k < kScales; ++k) {
    const py::array& a = arrays[k];
    const std::string where = std::string(name) + "[" + std::to_string(k) + "]";
    if (a.ndim() != 4) fail(where, "(N, C, h, w)", shape_of(a));
    FeatureView& v = views[k];
    v.dtype = feature_dtype(a, where);
    v.data = a.data();
    v.n = a.shape(0), v.channels = a.shape(1), v.height = a.shape(2), v.width = a.shape(3);
    for (int d = 0; d < 4; ++d) v.strides[d] = a.strides(d) / a.itemsize();
  }
  return views;
}

struct Outputs {
  std::unique_ptr<float[]> map, mean, max;
  std::size_t n, size;

  Outputs(const Tail& tail, std::size_t n, bool maps, bool maximum) : n(n), size(tail.size()) {
    if (maps) map.reset(new float[tail.map_values(n)]);
    mean.reset(new float[n]);
    if (maps || maximum) max.reset(new float[n]);
  }

  py::tuple as_tuple() {
    const auto count = static_cast<py::ssize_t>(n), side = static_cast<py::ssize_t>(size);
    py::object map_array = py::none(), max_array = py::none();
    if (map) map_array = take(std::move(map), {count, side, side});
    if (max) max_array = take(std::move(max), {count});
    return py::make_tuple(map_array, take(std::move(mean), {count}), max_array);
  }
};

std::vector<float> as_floats(const py::array& array, const char* name) {
  const py::array values = as_array(array, name);
  const float* data = contiguous<float>(values, name, {-1}, "(count,)");
  return std::vector<float>(data, data + values.size());
}

std::shared_ptr<Prior> make_prior(std::size_t size, std::array<std::size_t, kScales> sides,
                                  const py::array& projection, const py::array& shift,
                                  const py::array& maps, std::array<float, kScales> level,
                                  float offset, std::optional<std::array<float, 2>> foreground) {
  Prior::Numbers numbers{as_floats(projection, "projection"), as_floats(shift, "shift"),
                         as_floats(maps, "maps"), level, offset};
  if (foreground) {
    numbers.masked = true, numbers.dark = (*foreground)[0], numbers.bright = (*foreground)[1];
  }
  return std::make_shared<Prior>(size, sides, std::move(numbers));
}

py::tuple anomaly_map(const Tail& tail, const py::sequence& teacher, const py::sequence& student,
                      const py::array& scale_weights, bool maps, bool maximum,
                      const std::optional<py::array>& thumbnails) {
  const FeatureArrays teacher_arrays = three(teacher, "teacher"),
                      student_arrays = three(student, "student");
  const auto t = feature_views(teacher_arrays, "teacher");
  const auto s = feature_views(student_arrays, "student");
  const auto n = static_cast<py::ssize_t>(t[0].n);
  const float* weights =
      contiguous<float>(as_array(scale_weights, "scale_weights"), "scale_weights", {n, kScales},
                        "(" + std::to_string(n) + ", 3)");
  const float* thumbs = nullptr;
  if (tail.prior() != nullptr) {
    if (!thumbnails) fail("thumbnails", "those of the images, with a prior", "None");
    const auto grid = static_cast<py::ssize_t>(Prior::kGrid);
    thumbs = contiguous<float>(as_array(*thumbnails, "thumbnails"), "thumbnails", {n, grid, grid},
                               "(" + std::to_string(n) + ", 16, 16)");
  }
  Outputs outputs(tail, t[0].n, maps, maximum);
  {
    py::gil_scoped_release release;
    anomaly_map(tail, t, s, thumbs, weights, outputs.map.get(), outputs.mean.get(),
                outputs.max.get());
  }
  return outputs.as_tuple();
}

py::array_t<float> thumbnails(const Tail& tail, const py::array& inputs) {
  if (tail.prior() == nullptr) fail("tail", "one with a prior", "one without");
  const auto side = static_cast<py::ssize_t>(tail.size());
  const auto grid = static_cast<py::ssize_t>(Prior::kGrid);
  const py::array array = as_array(inputs, "inputs");
  const float* values =
      contiguous<float>(array, "inputs", {-1, 3, side, side},
                        "(N, 3, " + std::to_string(side) + ", " + std::to_string(side) + ")");
  const py::ssize_t n = array.shape(0);
  std::unique_ptr<float[]> out(new float[n * Prior::kCells]);
  {
    py::gil_scoped_release release;
    for (py::ssize_t i = 0; i < n; ++i) {
      tail.prior()->thumbnail(values + i * 3 * side * side, out.get() + i * Prior::kCells);
    }
  }
  return take(std::move(out), {n, grid, grid});
}

}  // namespace

void bind_anomaly_map(py::module_& module) {
  py::class_<Prior, std::shared_ptr<Prior>>(
      module, "Prior", "What is known of normal images, by which distances are judged.")
      .def(py::init(&make_prior), py::arg("size"), py::arg("sides"), py::arg("projection"),
           py::arg("shift"), py::arg("maps"), py::arg("level"), py::arg("offset"),
           py::arg("foreground"));
  py::class_<Tail, std::shared_ptr<Tail>>(
      module, "Tail", "Turns three distances into the map and the scores of an image.")
      .def(py::init<std::size_t, std::array<std::size_t, kScales>, double, bool,
                    std::shared_ptr<Prior>>(),
           py::arg("size"), py::arg("sides"), py::arg("sigma"), py::arg("weighted"),
           py::arg("prior") = nullptr)
      .def("thumbnails", &thumbnails, py::arg("inputs"),
           "What the prior reads of network inputs (N, 3, S, S) -> (N, 16, 16).")
      .def("anomaly_map", &anomaly_map, py::arg("teacher"), py::arg("student"),
           py::arg("scale_weights"), py::arg("maps"), py::arg("maximum"),
           py::arg("thumbnails") = py::none(),
           "Features of three scales, float32 or uint16 with the bits of bfloat16, -> (map or "
           "None, mean, max or None).");
}

}  // namespace scrd::python
