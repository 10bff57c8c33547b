#include "arrays.hpp"

namespace scrd::python {
namespace {

constexpr const char* kBatch = "uint8, uint16 or float (N, H, W) or (N, H, W, 3)";

std::string type_name(const py::handle& value) {
  return py::cast<std::string>(py::type::of(value).attr("__name__"));
}

DType image_dtype(const py::array& array, const std::string& name) {
  if (py::isinstance<py::array_t<std::uint8_t>>(array)) return DType::u8;
  if (py::isinstance<py::array_t<std::uint16_t>>(array)) return DType::u16;
  if (py::isinstance<py::array_t<float>>(array)) return DType::f32;
  if (py::isinstance<py::array_t<double>>(array)) return DType::f64;
  fail(name, "dtype uint8, uint16 or float32", dtype_of(array));
}

// Axes (H, W) or (H, W, 3) from axis `first` on.
ImageView image_view(const py::array& array, DType dtype, py::ssize_t first) {
  ImageView view;
  view.data = array.data();
  view.dtype = dtype;
  view.height = static_cast<std::size_t>(array.shape(first));
  view.width = static_cast<std::size_t>(array.shape(first + 1));
  view.channels = array.ndim() == first + 3 ? kPixelChannels : 1;
  view.row_stride = array.strides(first);
  view.column_stride = array.strides(first + 1);
  view.channel_stride = array.ndim() == first + 3 ? array.strides(first + 2) : 0;
  return view;
}

std::vector<ImageView> batch_views(const py::array& batch, const std::string& name) {
  const DType dtype = image_dtype(batch, name);
  if (batch.ndim() != 3 && !(batch.ndim() == 4 && batch.shape(3) == 3)) {
    fail(name, kBatch, dtype_of(batch) + " " + shape_of(batch));
  }
  if (batch.shape(0) == 0) fail(name, "at least one image", "an empty batch " + shape_of(batch));
  if (batch.size() == 0) fail(name, "images of at least one pixel", shape_of(batch));
  std::vector<ImageView> views(static_cast<std::size_t>(batch.shape(0)),
                               image_view(batch, dtype, 1));
  for (std::size_t i = 0; i < views.size(); ++i) {
    views[i].data =
        static_cast<const char*>(batch.data()) + static_cast<py::ssize_t>(i) * batch.strides(0);
  }
  return views;
}

}  // namespace

std::vector<ImageView> image_views(const py::object& images, const std::string& name,
                                   std::vector<py::array>& owners) {
  if (py::isinstance<py::array>(images)) {
    owners.push_back(py::reinterpret_borrow<py::array>(images));
    return batch_views(owners.back(), name);
  }
  if (!py::isinstance<py::sequence>(images) || py::isinstance<py::str>(images) ||
      PyObject_CheckBuffer(images.ptr()) != 0) {  // bytes, and views of memory
    fail(name, std::string(kBatch) + ", or a list of images", type_name(images));
  }
  const auto sequence = py::reinterpret_borrow<py::sequence>(images);
  if (sequence.size() == 0) fail(name, "at least one image", "an empty list");
  std::vector<ImageView> views;
  for (std::size_t i = 0; i < sequence.size(); ++i) {
    const py::object value = sequence[i];
    const std::string where = name + "[" + std::to_string(i) + "]";
    if (!py::isinstance<py::array>(value)) {
      fail(where, "an array or a tensor", type_name(value));
    }
    owners.push_back(py::reinterpret_borrow<py::array>(value));
    const py::array& array = owners.back();
    const DType dtype = image_dtype(array, where);
    if (array.ndim() != 2 && !(array.ndim() == 3 && array.shape(2) == 3)) {
      fail(where, "(H, W) or (H, W, 3)", shape_of(array));
    }
    views.push_back(image_view(array, dtype, 0));
    check_image(views.back(), where);
  }
  return views;
}

}  // namespace scrd::python
