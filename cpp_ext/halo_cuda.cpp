// The GPU half of stitching as the Python module `unet_engine._halo_cuda`: DLPack arrays in, no torch needed. Imports without a
// driver. What the functions mean is said in `engine/unet_engine/_halo_cuda.pyi`; all checks come before anything is queued.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <string>

#include "halo_cuda.hpp"

namespace nb = nanobind;

namespace unet_engine {
namespace {

using Array = nb::ndarray<nb::device::cuda>;
using Input = nb::ndarray<nb::ro, nb::device::cuda>;
using HostWeights = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using HostCorners = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr char kNames[kAxes] = {'z', 'y', 'x'};

[[noreturn]] void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

template <typename A>
bool is(const A& array, nb::dlpack::dtype_code code, int bits) {
  return array.dtype().code == static_cast<std::uint8_t>(code) && array.dtype().bits == bits && array.dtype().lanes == 1;
}

// (channels, z, y, x) of an array of two or three spatial axes; an array of labels has no axis for channels.
template <typename T, typename A>
View<T> view(const A& array, const char* name, bool has_channels = true) {
  const int axes = static_cast<int>(array.ndim()) - (has_channels ? 1 : 0);
  if (axes != 2 && axes != 3) refuse(std::string(name) + " must have 2 or 3 spatial axes");
  View<T> result{static_cast<T*>(array.data()), {1, 1, 1, 1}, {0, 0, 0, 0}};
  if (has_channels) {
    result.shape[0] = static_cast<index_t>(array.shape(0));
    result.stride[0] = array.stride(0);
  }
  for (int i = 0; i < axes; ++i) {
    const std::size_t from = static_cast<std::size_t>(i + (has_channels ? 1 : 0));
    result.shape[1 + kAxes - axes + i] = static_cast<index_t>(array.shape(from));
    result.stride[1 + kAxes - axes + i] = array.stride(from);
  }
  return result;
}

template <typename A>
View<float> sums_of(const A& array) {
  if (!is(array, nb::dlpack::dtype_code::Float, 32)) refuse("sums must be float32");
  if (array.ndim() > 0 && array.shape(0) == 0) refuse("sums has no channel: give at least one");
  return view<float>(array, "sums");
}

View<const float> constant(const View<float>& v) {
  View<const float> result{v.data, {}, {}};
  std::copy_n(v.shape, 1 + kAxes, result.shape);
  std::copy_n(v.stride, 1 + kAxes, result.stride);
  return result;
}

template <typename A>
void check_device(const Array& sums, const A& other, const char* name) {
  if (sums.device_id() != other.device_id()) refuse(std::string(name) + " must be on the device of sums");
}

// [lo, hi) must lie in `window` and, moved by `at`, in `sums`.
void check_axis(index_t window, index_t sums, index_t at, index_t lo, index_t hi, int axis, std::size_t n) {
  const bool inside = 0 <= lo && hi <= window && lo >= -at && at <= std::numeric_limits<index_t>::max() - hi && at + hi <= sums;
  if (!inside) refuse("window " + std::to_string(n) + ", axis " + kNames[axis] + ": the range leaves the window or the sums");
}

std::vector<cuda::Placement> places_of(const HostCorners& at, const HostCorners& lo, const HostCorners& hi, std::size_t count,
                                       int axes, const index_t* window, const index_t* sums) {
  for (const HostCorners* corners : {&at, &lo, &hi}) {
    if (corners->shape(0) != count || static_cast<int>(corners->shape(1)) != axes) {
      refuse("at, lo and hi must be (windows, axes)");
    }
  }
  std::vector<cuda::Placement> places(count, cuda::Placement{{0, 0, 0}, {0, 0, 0}, {1, 1, 1}});
  for (std::size_t n = 0; n < count; ++n) {
    bool empty = false;
    for (int i = 0; i < axes; ++i) empty = empty || hi(n, i) <= lo(n, i);
    for (int i = 0; i < axes; ++i) {
      const int a = kAxes - axes + i;
      if (!empty) check_axis(window[a], sums[a], at(n, i), lo(n, i), hi(n, i), a, n);
      places[n].at[a] = empty ? 0 : at(n, i);
      places[n].lo[a] = empty ? 0 : lo(n, i);
      places[n].hi[a] = empty ? 0 : hi(n, i);
    }
  }
  return places;
}

// One vector per window: its weights on z (1 where there is no such axis), y, x.
std::vector<float> packed(const std::vector<HostWeights>& weights, std::size_t count, int axes, const index_t* window) {
  if (static_cast<int>(weights.size()) != axes) refuse("weights must be one array (windows, length) per axis");
  for (int i = 0; i < axes; ++i) {
    if (weights[i].shape(0) != count || static_cast<index_t>(weights[i].shape(1)) != window[kAxes - axes + i]) {
      refuse(std::string("axis ") + kNames[kAxes - axes + i] + ": weights must be (windows, length of the window)");
    }
  }
  std::vector<float> result;
  result.reserve(count * static_cast<std::size_t>(window[0] + window[1] + window[2]));
  for (std::size_t n = 0; n < count; ++n) {
    if (axes == 2) result.push_back(1.0f);
    for (const HostWeights& w : weights) result.insert(result.end(), &w(n, 0), &w(n, 0) + w.shape(1));
  }
  return result;
}

void add_batch(const Array& sums_array, const Input& windows, const std::vector<HostWeights>& weights, const HostCorners& at,
               const HostCorners& lo, const HostCorners& hi, std::uintptr_t stream) {
  const auto sums = sums_of(sums_array);
  const int axes = static_cast<int>(sums_array.ndim()) - 1;
  check_device(sums_array, windows, "windows");
  if (windows.ndim() != sums_array.ndim() + 1) refuse("windows must be (windows, channels, spatial axes as sums)");
  if (static_cast<index_t>(windows.shape(1)) != sums.shape[0]) refuse("windows must have as many channels as sums");
  const std::size_t count = windows.shape(0);
  index_t size[kAxes] = {1, 1, 1}, stride[1 + kAxes] = {windows.stride(1), 0, 0, 0};
  for (int i = 0; i < axes; ++i) {
    size[kAxes - axes + i] = static_cast<index_t>(windows.shape(static_cast<std::size_t>(2 + i)));
    stride[1 + kAxes - axes + i] = windows.stride(static_cast<std::size_t>(2 + i));
  }
  const auto places = places_of(at, lo, hi, count, axes, size, sums.shape + 1);
  const auto weights_of_all = packed(weights, count, axes, size);
  const auto run = [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    cuda::Batch<T> batch{data, static_cast<index_t>(count), windows.stride(0), {}, {}};
    std::copy_n(size, kAxes, batch.size);
    std::copy_n(stride, 1 + kAxes, batch.stride);
    const nb::gil_scoped_release release;
    cuda::add_batch(cuda::Queue{sums_array.device_id(), stream}, sums, batch, places, weights_of_all);
  };
  if (is(windows, nb::dlpack::dtype_code::Float, 32)) return run(static_cast<const float*>(windows.data()));
  if (is(windows, nb::dlpack::dtype_code::Float, 16)) return run(static_cast<const Half*>(windows.data()));
  if (is(windows, nb::dlpack::dtype_code::Bfloat, 16)) return run(static_cast<const BFloat16*>(windows.data()));
  refuse("windows must be float32, float16 or bfloat16");
}

void merge(const Array& sums_array, const Input& halo_array, const std::vector<index_t>& at, std::uintptr_t stream) {
  auto sums = sums_of(sums_array);
  check_device(sums_array, halo_array, "halo");
  if (!is(halo_array, nb::dlpack::dtype_code::Float, 32)) refuse("halo must be float32");
  const auto halo = view<const float>(halo_array, "halo");
  if (halo_array.ndim() != sums_array.ndim() || at.size() + 1 != sums_array.ndim()) refuse("halo and at must have the axes of sums");
  if (halo.shape[0] != sums.shape[0]) refuse("halo must have as many channels as sums");
  for (std::size_t i = 0; i < at.size(); ++i) {
    const int a = kAxes - static_cast<int>(at.size()) + static_cast<int>(i);
    check_axis(halo.shape[1 + a], sums.shape[1 + a], at[i], 0, halo.shape[1 + a], a, 0);
    sums.data += at[i] * sums.stride[1 + a];
  }
  const nb::gil_scoped_release release;
  cuda::merge(cuda::Queue{sums_array.device_id(), stream}, sums, halo);
}

Activation activation_of(const std::string& name) {
  if (name == "softmax") return Activation::kSoftmax;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "none") return Activation::kNone;
  refuse("unknown activation '" + name + "': take one of softmax, sigmoid, none");
}

template <typename T>
void check_shape(const View<T>& out, const View<float>& sums) {
  if (!std::equal(out.shape + 1, out.shape + 1 + kAxes, sums.shape + 1)) refuse("out must have the shape of sums");
}

void labels(const Array& sums_array, const Array& out_array, const std::string& activation, std::uintptr_t stream) {
  const auto sums = sums_of(sums_array);
  check_device(sums_array, out_array, "out");
  const bool threshold = activation_of(activation) == Activation::kSigmoid || sums.shape[0] == 1;
  const cuda::Queue queue{sums_array.device_id(), stream};
  const auto run = [&](auto highest) {
    using T = decltype(highest);
    if (sums.shape[0] - (threshold ? 0 : 1) > highest) refuse("labels do not fit into the type of out: take uint16");
    const auto out = view<T>(out_array, "out", false);
    check_shape(out, sums);
    const nb::gil_scoped_release release;
    cuda::labels(queue, constant(sums), out, threshold);
  };
  if (is(out_array, nb::dlpack::dtype_code::UInt, 8)) return run(std::numeric_limits<std::uint8_t>::max());
  if (is(out_array, nb::dlpack::dtype_code::UInt, 16)) return run(std::numeric_limits<std::uint16_t>::max());
  refuse("out must be uint8 or uint16");
}

void probabilities(const Array& sums_array, const Array& out_array, const std::string& activation, std::uintptr_t stream) {
  const auto sums = sums_of(sums_array);
  check_device(sums_array, out_array, "out");
  const Activation chosen = activation_of(activation);
  const cuda::Queue queue{sums_array.device_id(), stream};
  const auto run = [&](auto tag) {
    const auto out = view<decltype(tag)>(out_array, "out");
    check_shape(out, sums);
    if (out.shape[0] != sums.shape[0]) refuse("out must have as many channels as sums");
    const nb::gil_scoped_release release;
    cuda::probabilities(queue, constant(sums), out, chosen);
  };
  if (is(out_array, nb::dlpack::dtype_code::UInt, 8)) return run(std::uint8_t{});
  if (is(out_array, nb::dlpack::dtype_code::Float, 32)) return run(float{});
  refuse("out must be uint8 or float32");
}

}  // namespace
}  // namespace unet_engine

NB_MODULE(_halo_cuda, m) {
  using namespace unet_engine;
  using namespace nanobind::literals;
  m.doc() = "CUDA implementation of unet_engine.halo on DLPack arrays.";
  m.def("add_batch", &add_batch, "sums"_a, "windows"_a, "weights"_a, "at"_a, "lo"_a, "hi"_a, nb::kw_only(), "stream"_a = 0);
  m.def("merge", &merge, "sums"_a, "halo"_a, "at"_a, nb::kw_only(), "stream"_a = 0);
  m.def("labels", &labels, "sums"_a, "out"_a, "activation"_a, nb::kw_only(), "stream"_a = 0);
  m.def("probabilities", &probabilities, "sums"_a, "out"_a, "activation"_a, nb::kw_only(), "stream"_a = 0);
}
