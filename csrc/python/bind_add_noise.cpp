#include "arrays.hpp"
#include "module.hpp"
#include "scrd/add_noise.hpp"

namespace scrd::python {
namespace {

void add(const py::array& images, const py::array& boxes, const py::array& seeds,
         const py::array& strengths, int octaves, double persistence, double wavelength) {
  py::array target = as_array(images, "images");
  if (!py::isinstance<py::array_t<float>>(target) || target.ndim() != 4) {
    fail("images", "float32 (N, C, H, W)", dtype_of(target) + " " + shape_of(target));
  }
  if (!target.writeable()) fail("images", "memory that can be written", "a read-only array");
  std::ptrdiff_t strides[4];
  std::size_t sizes[4];
  for (int d = 0; d < 4; ++d) {
    sizes[d] = static_cast<std::size_t>(target.shape(d));
    if (target.strides(d) % static_cast<py::ssize_t>(sizeof(float)) != 0) {
      fail("images", "strides of whole elements", std::to_string(target.strides(d)) + " bytes");
    }
    strides[d] = target.strides(d) / static_cast<py::ssize_t>(sizeof(float));
  }
  const py::ssize_t n = target.shape(0);
  const std::string count = std::to_string(n);
  const py::array box_array = as_array(boxes, "boxes"), seed_array = as_array(seeds, "seeds"),
                  strength_array = as_array(strengths, "strength");
  const auto* corners = contiguous<std::int64_t>(box_array, "boxes", {n, 4}, "(" + count + ", 4)");
  const auto* seed = contiguous<std::int64_t>(seed_array, "seeds", {n}, "(" + count + ",)");
  const auto* strength = contiguous<double>(strength_array, "strength", {n}, "(" + count + ",)");
  auto* pixels = static_cast<float*>(target.mutable_data());
  std::vector<Box> box_list(sizes[0]);
  for (Box& box : box_list) {
    box = {corners[0], corners[1], corners[2], corners[3]};
    corners += 4;
  }
  py::gil_scoped_release release;
  add_noise(pixels, strides, sizes[0], sizes[1], sizes[2], sizes[3], box_list.data(), seed,
            strength, {octaves, persistence, wavelength});
}

}  // namespace

void bind_add_noise(py::module_& module) {
  module.def("add_noise", &add, py::arg("images"), py::arg("boxes"), py::arg("seeds"),
             py::arg("strengths"), py::arg("octaves"), py::arg("persistence"),
             py::arg("wavelength"),
             "Add noise to images, float32 (N, C, H, W), in place. boxes: int64 (N, 4) top, left, "
             "height, width; seeds: int64 (N,); strengths: float64 (N,).");
}

}  // namespace scrd::python
