// The Python side of `resample` and `clip`: checks before anything is queued. Included by `device_module.cpp` alone.
#pragma once

#include "device_arrays.hpp"
#include "device_finish.hpp"

namespace unet_engine {
namespace {

// One value (or row of values) per channel, where it is given.
template <typename Values>
auto of_channels(const std::optional<Values>& values, const Array& out, index_t channels, const char* name) {
  decltype(values->data()) found = nullptr;
  if (!values.has_value()) return found;
  check_device(out, *values, name);
  if (static_cast<index_t>(values->shape(0)) != channels) refuse(std::string(name) + " must have one value per channel");
  found = values->data();
  return found;
}

inline void resample(const Input& scan_array, const Array& out_array, const AxisTables<std::int32_t, 1>& first,
                     const AxisTables<float, 2>& weights, const std::vector<index_t>& begin,
                     const std::optional<Table<double, 1>>& scale, const std::optional<Table<double, 1>>& shift,
                     const std::optional<Table<double, 2>>& limits, const std::optional<Table<float, 1>>& pivot,
                     std::uintptr_t stream) {
  check_device(out_array, scan_array, "scan");
  const auto out = floats(out_array, "out");
  const index_t channels = out.shape[0];
  if (scale.has_value() != shift.has_value()) refuse("give both scale and shift, or neither");
  if (limits.has_value() && limits->shape(1) != 4) refuse("limits must be four values per channel");
  static_assert(sizeof(Limits) == 4 * sizeof(double));
  const GridTables tables{out_array, first, weights, begin};
  with_block_type(scan_array, [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const auto scan = view<const T>(scan_array, "scan");
    if (scan.shape[0] != channels) refuse("out must have as many channels as scan");
    ResampleBody<T> body{scan,
                         out,
                         {},
                         of_channels(scale, out_array, channels, "scale"),
                         of_channels(shift, out_array, channels, "shift"),
                         reinterpret_cast<const Limits*>(of_channels(limits, out_array, channels, "limits")),
                         of_channels(pivot, out_array, channels, "pivot")};
    for (int a = 0; a < kAxes; ++a) {
      body.axes[a] = tables.axis(a, scan.shape[1 + a]);
      tables.check_size(a, body.axes[a], out.shape[1 + a], "scan");
    }
    const nb::gil_scoped_release release;
    launch::resample(launch::Queue{out_array.device_id(), stream}, body);
  });
}

inline void clip_voxels(const Array& voxels_array, const Input& low_array, const Input& high_array, std::uintptr_t stream) {
  const auto voxels = floats(voxels_array, "voxels");
  View<const float> ends[2];
  for (const auto* array : {&low_array, &high_array}) {
    check_device(voxels_array, *array, "low and high");
    const auto found = constant(floats(*array, "low and high"));
    if (!std::equal(found.shape, found.shape + 1 + kAxes, voxels.shape)) refuse("low and high must have the shape of voxels");
    ends[array == &high_array] = found;
  }
  const ClipBody body{voxels, ends[0], ends[1]};
  const nb::gil_scoped_release release;
  launch::clip(launch::Queue{voxels_array.device_id(), stream}, body);
}

}  // namespace
}  // namespace unet_engine
