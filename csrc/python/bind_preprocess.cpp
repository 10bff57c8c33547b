#include "arrays.hpp"
#include "module.hpp"

namespace scrd::python {
namespace {

template <typename T>
py::array preprocessed(const std::vector<ImageView>& views, const PixelSpec& spec) {
  std::unique_ptr<T[]> out(new T[input_values(views.size(), spec)]);
  {
    py::gil_scoped_release release;
    preprocess(views.data(), views.size(), spec, out.get());
  }
  const auto side = static_cast<py::ssize_t>(spec.size);
  return take(std::move(out), {static_cast<py::ssize_t>(views.size()), kPixelChannels, side, side});
}

}  // namespace

void bind_preprocess(py::module_& module) {
  module.def(
      "preprocess",
      [](const py::object& images, std::size_t size, std::array<float, kPixelChannels> mean,
         std::array<float, kPixelChannels> std, bool bfloat16) -> py::array {
        std::vector<py::array> owners;
        const std::vector<ImageView> views = image_views(images, "images", owners);
        const PixelSpec spec{size, mean, std};
        const bool batch = py::isinstance<py::array>(images);
        {
          py::gil_scoped_release release;
          check_finite(views.data(), views.size(), "images", batch);
        }
        return bfloat16 ? preprocessed<std::uint16_t>(views, spec)
                        : preprocessed<float>(views, spec);
      },
      py::arg("images"), py::arg("size"), py::arg("mean"), py::arg("std"), py::arg("bfloat16"),
      "Images, one array or a sequence of arrays, -> (N, 3, size, size), float32 or uint16 with "
      "the bits of bfloat16.");
  module.def(
      "all_inside",
      [](const py::array& values, float low, float high) {
        const bool wide = py::isinstance<py::array_t<double>>(values);
        const bool contiguous = values.flags() & py::array::c_style;
        if (!contiguous || !(wide || py::isinstance<py::array_t<float>>(values))) {
          fail("values", "float32 or float64 in C-contiguous memory", dtype_of(values));
        }
        py::gil_scoped_release release;
        return all_inside(values.data(), wide ? DType::f64 : DType::f32,
                          static_cast<std::size_t>(values.size()), low, high);
      },
      py::arg("values"), py::arg("low"), py::arg("high"),
      "Whether all values of a C-contiguous float32 or float64 array lie in [low, high] as "
      "float32; what is not finite never does.");
}

}  // namespace scrd::python
