#include <cstring>
#include <limits>
#include <new>

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

  Outputs(std::size_t n, std::size_t size, bool maps, bool maximum) : n(n), size(size) {
    const std::size_t most = std::numeric_limits<std::size_t>::max() / sizeof(float);
    if (n > most / (size * size)) throw std::bad_alloc();
    if (maps) map.reset(new float[n * size * size]);
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

py::tuple anomaly_map(const Tail& tail, const py::sequence& teacher, const py::sequence& student,
                      const py::array& scale_weights, bool maps, bool maximum) {
  const FeatureArrays teacher_arrays = three(teacher, "teacher"),
                      student_arrays = three(student, "student");
  const auto t = feature_views(teacher_arrays, "teacher");
  const auto s = feature_views(student_arrays, "student");
  const auto n = static_cast<py::ssize_t>(t[0].n);
  const float* weights =
      contiguous<float>(as_array(scale_weights, "scale_weights"), "scale_weights", {n, kScales},
                        "(" + std::to_string(n) + ", 3)");
  Outputs outputs(t[0].n, tail.size(), maps, maximum);
  {
    py::gil_scoped_release release;
    anomaly_map(tail, t, s, weights, outputs.map.get(), outputs.mean.get(), outputs.max.get());
  }
  return outputs.as_tuple();
}

py::list distances(const py::sequence& teacher, const py::sequence& student) {
  const FeatureArrays teacher_arrays = three(teacher, "teacher"),
                      student_arrays = three(student, "student");
  const auto t = feature_views(teacher_arrays, "teacher");
  const auto s = feature_views(student_arrays, "student");
  std::array<std::unique_ptr<float[]>, kScales> out;
  std::array<float*, kScales> pointers;
  for (int k = 0; k < kScales; ++k) {
    out[k].reset(new float[t[k].n * t[k].height * t[k].width]);
    pointers[k] = out[k].get();
  }
  {
    py::gil_scoped_release release;
    cosine_distances(t, s, pointers);
  }
  py::list arrays;
  for (int k = 0; k < kScales; ++k) {
    arrays.append(take(std::move(out[k]),
                       {static_cast<py::ssize_t>(t[k].n), static_cast<py::ssize_t>(t[k].height),
                        static_cast<py::ssize_t>(t[k].width)}));
  }
  return arrays;
}

py::tuple combine(const Tail& tail, const py::sequence& distance_arrays,
                  const py::array& scale_weights, bool maps, bool maximum) {
  const py::array weights = as_array(scale_weights, "scale_weights");
  const FeatureArrays arrays = three(distance_arrays, "distances");
  const py::ssize_t n = arrays[0].ndim() > 0 ? arrays[0].shape(0) : 0;
  std::array<const float*, kScales> pointers;
  for (int k = 0; k < kScales; ++k) {
    const auto side = static_cast<py::ssize_t>(tail.sides()[k]);
    const std::string text = std::to_string(side);
    pointers[k] = contiguous<float>(arrays[k], "distances[" + std::to_string(k) + "]",
                                    {n, side, side}, "(N, " + text + ", " + text + ")");
  }
  const float* w =
      contiguous<float>(weights, "scale_weights", {n, kScales}, "(" + std::to_string(n) + ", 3)");
  Outputs outputs(static_cast<std::size_t>(n), tail.size(), maps, maximum);
  {
    py::gil_scoped_release release;
    tail(pointers, w, outputs.n, outputs.map.get(), outputs.mean.get(), outputs.max.get());
  }
  return outputs.as_tuple();
}

}  // namespace

void bind_anomaly_map(py::module_& module) {
  py::class_<Tail, std::shared_ptr<Tail>>(
      module, "Tail", "Turns three distances into the map and the scores of an image.")
      .def(py::init<std::size_t, std::array<std::size_t, kScales>, double, bool>(), py::arg("size"),
           py::arg("sides"), py::arg("sigma"), py::arg("weighted"))
      .def("anomaly_map", &anomaly_map, py::arg("teacher"), py::arg("student"),
           py::arg("scale_weights"), py::arg("maps"), py::arg("maximum"),
           "Features of three scales, float32 or uint16 with the bits of bfloat16, -> (map or "
           "None, mean, max or None).")
      .def("combine", &combine, py::arg("distances"), py::arg("scale_weights"), py::arg("maps"),
           py::arg("maximum"),
           "Three float32 distances (N, h, w) -> (map or None, mean, max or None).");
  module.def("cosine_distances", &distances, py::arg("teacher"), py::arg("student"),
             "The three distances (N, h, w), float32, of features (N, C, h, w).");
  module.def(
      "upsample_blur_band",
      [](std::size_t size, std::size_t side, double sigma) {
        const BandMatrix band = upsample_blur_band(size, side, sigma);
        py::array_t<float> dense({size, side});
        std::memset(dense.mutable_data(), 0, size * side * sizeof(float));
        for (std::size_t i = 0; i < size; ++i) {
          for (std::size_t k = 0; k < band.width; ++k) {
            dense.mutable_at(i, band.first[i] + k) = band.values[i * band.width + k];
          }
        }
        return dense;
      },
      py::arg("size"), py::arg("side"), py::arg("sigma"), "U = G B, dense (size, side) float32.");
}

}  // namespace scrd::python
