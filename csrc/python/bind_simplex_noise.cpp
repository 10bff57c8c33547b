#include <memory>
#include <utility>

#include "arrays.hpp"
#include "module.hpp"
#include "scrd/simplex_noise.hpp"

namespace scrd::python {
namespace {

py::array_t<std::uint8_t> permutation_of(std::int64_t seed) {
  py::array_t<std::uint8_t> table(256);
  permutation(seed, table.mutable_data());
  return table;
}

py::array_t<float> noise(const py::array& seeds, std::size_t depth, std::size_t height,
                         std::size_t width, int octaves, double persistence, double wavelength) {
  const py::array seed_array = as_array(seeds, "seeds");
  const std::int64_t* seed = contiguous<std::int64_t>(seed_array, "seeds", {-1}, "(S,)");
  const auto n = static_cast<std::size_t>(seed_array.shape(0));
  std::unique_ptr<float[]> out(new float[field_values(n, depth, height, width)]);
  {
    py::gil_scoped_release release;
    simplex_noise(seed, n, depth, height, width, {octaves, persistence, wavelength}, out.get());
  }
  return take(std::move(out), {static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(depth),
                               static_cast<py::ssize_t>(height), static_cast<py::ssize_t>(width)});
}

}  // namespace

void bind_simplex_noise(py::module_& module) {
  module.def("permutation", &permutation_of, py::arg("seed"),
             "The permutation (256,) uint8 that an int64 seed stands for.");
  module.def("simplex_noise", &noise, py::arg("seeds"), py::arg("depth"), py::arg("height"),
             py::arg("width"), py::arg("octaves"), py::arg("persistence"), py::arg("wavelength"),
             "Octave noise, float32 (S, depth, height, width), of int64 seeds (S,).");
}

}  // namespace scrd::python
