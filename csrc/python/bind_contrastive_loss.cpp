#include "arrays.hpp"
#include "module.hpp"
#include "scrd/contrastive_loss.hpp"

namespace scrd::python {
namespace {

// Dense maps (N, size) of three scales, all of the first one's batch and dtype.
struct Batch {
  FeatureArrays clean, noisy, student;
  std::array<LossMaps, kScales> maps;
  std::size_t n = 0;

  Batch(const py::sequence& clean_maps, const py::sequence& noisy_maps,
        const py::sequence& student_maps)
      : clean(three(clean_maps, "clean")),
        noisy(three(noisy_maps, "noisy")),
        student(three(student_maps, "student")) {
    for (int k = 0; k < kScales; ++k) {
      const std::string at = "[" + std::to_string(k) + "]";
      const py::array& first = clean[k];
      if (first.ndim() != 2) fail("clean" + at, "(N, size)", shape_of(first));
      if (k == 0) n = static_cast<std::size_t>(first.shape(0));
      const auto size = static_cast<std::size_t>(first.shape(1));
      const DType dtype = feature_dtype(clean[0], "clean[0]");
      const auto data = [&](const py::array& map, const std::string& name) {
        const bool fits = map.ndim() == 2 && static_cast<std::size_t>(map.shape(0)) == n &&
                          static_cast<std::size_t>(map.shape(1)) == size;
        if (!fits) {
          fail(name, "(" + std::to_string(n) + ", " + std::to_string(size) + ")", shape_of(map));
        }
        if (feature_dtype(map, name) != dtype) fail(name, dtype_of(clean[0]), dtype_of(map));
        if (!(map.flags() & py::array::c_style)) {
          fail(name, "C-contiguous memory", "a strided array");
        }
        return map.data();
      };
      maps[k] = {data(first, "clean" + at), data(noisy[k], "noisy" + at),
                 data(student[k], "student" + at), dtype, size};
    }
  }
};

py::array_t<double> sums(const py::sequence& clean, const py::sequence& noisy,
                         const py::sequence& student) {
  const Batch batch(clean, noisy, student);
  std::unique_ptr<double[]> out(new double[batch.n * kScales * kLossSums]);
  {
    py::gil_scoped_release release;
    contrastive_sums(batch.maps, batch.n, out.get());
  }
  return take(std::move(out), {static_cast<py::ssize_t>(batch.n), kScales, kLossSums});
}

void gradient(const py::sequence& clean, const py::sequence& noisy, const py::sequence& student,
              const py::array& factors, const py::sequence& gradients) {
  const Batch batch(clean, noisy, student);
  const auto n = static_cast<py::ssize_t>(batch.n);
  const py::array factor_array = as_array(factors, "factors");
  const auto* factor = contiguous<double>(factor_array, "factors", {n, kScales, 3},
                                          "(" + std::to_string(n) + ", 3, 3)");
  FeatureArrays targets = three(gradients, "gradients");
  std::array<void*, kScales> out;
  for (int k = 0; k < kScales; ++k) {
    const std::string name = "gradients[" + std::to_string(k) + "]";
    const py::array &target = targets[k], &student_map = batch.student[k];
    const bool fits = target.ndim() == 2 && shape_of(target) == shape_of(student_map) &&
                      feature_dtype(target, name) == batch.maps[k].dtype;
    if (!fits) {
      fail(name, dtype_of(student_map) + " " + shape_of(student_map),
           dtype_of(target) + " " + shape_of(target));
    }
    if (!target.writeable() || !(target.flags() & py::array::c_style)) {
      fail(name, "C-contiguous memory that can be written", "another");
    }
    out[k] = targets[k].mutable_data();
  }
  py::gil_scoped_release release;
  contrastive_gradient(batch.maps, batch.n, factor, out);
}

}  // namespace

void bind_contrastive_loss(py::module_& module) {
  module.def("contrastive_sums", &sums, py::arg("clean"), py::arg("noisy"), py::arg("student"),
             "Three maps (N, size) each, float32 or uint16 with the bits of bfloat16 -> float64 "
             "(N, 3, 5): clean . student, noisy . student, and the squares of the three.");
  module.def("contrastive_gradient", &gradient, py::arg("clean"), py::arg("noisy"),
             py::arg("student"), py::arg("factors"), py::arg("gradients"),
             "Write factors[:, k, 0] clean[k] + factors[:, k, 1] noisy[k] + factors[:, k, 2] "
             "student[k] into gradients[k]. factors: float64 (N, 3, 3).");
}

}  // namespace scrd::python
