// The GPU half of stitching as a Python module: DLPack arrays in, no torch needed. Built twice:
// `unet_engine.devices._halo_cuda` on CUDA arrays with `launch_cuda.cu`, which imports without a driver, and, with
// UNET_ENGINE_LOOP defined, `unet_engine.devices._halo_loop` on arrays of the host with `launch_loop.cpp`, for tests.
// What the functions mean is said in `engine/unet_engine/devices/_halo_cuda.pyi`; all checks come before anything is
// queued. Arrays on the device are not looked into.
#include <nanobind/nanobind.h>

#include "device_arrays.hpp"
#include "device_finish.hpp"
#include "device_norm.hpp"
#include "device_resample.hpp"
#include "launch.hpp"

namespace nb = nanobind;

namespace unet_engine {
namespace {

void gather(const Array& windows, const Input& raw_array, const std::vector<Table<std::int32_t, 2>>& positions,
            const Table<std::int32_t, 2>& entries, const Table<std::int32_t, 1>& order, const Table<double, 1>& scale,
            const Table<double, 1>& shift, double fill, const std::optional<Table<double, 2>>& limits,
            const std::optional<Table<std::int32_t, 1>>& poses, std::uintptr_t stream) {
  check_device(windows, raw_array, "raw");
  const Batch batch = batch_of(windows, static_cast<int>(raw_array.ndim()) - 1);
  check_tables(positions, windows, batch.size, "positions");
  const Entry* const entry = entries_of(entries, windows);
  if (static_cast<index_t>(order.shape(0)) > batch.count) refuse("order names more windows than the batch holds");
  check_device(windows, order, "order");
  for (const auto* vector : {&scale, &shift}) {
    check_device(windows, *vector, "scale and shift");
    if (static_cast<index_t>(vector->shape(0)) != batch.channels)
      refuse("scale and shift must have one value per channel");
  }
  static_assert(sizeof(Limits) == 4 * sizeof(double));
  const Limits* bounds = nullptr;
  if (limits.has_value()) {
    check_device(windows, *limits, "limits");
    if (static_cast<index_t>(limits->shape(0)) != batch.channels || limits->shape(1) != 4)
      refuse("limits must be four values per channel");
    bounds = reinterpret_cast<const Limits*>(limits->data());
  }
  with_block_type(raw_array, [&](auto* raw_data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(raw_data)>>;
    const auto raw = view<const T>(raw_array, "raw");
    if (raw.shape[0] != batch.channels) refuse("raw must have as many channels as the windows");
    const Input as_input(windows);
    with_window_type(as_input, [&](auto* data) {
      using U = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      GatherBody<T, U> body{raw,
                            const_cast<U*>(data),
                            batch.stride_n,
                            {},
                            {},
                            {},
                            entry,
                            order.data(),
                            static_cast<index_t>(order.shape(0)),
                            per_entry(poses, entries, windows, "poses"),
                            scale.data(),
                            shift.data(),
                            bounds,
                            static_cast<float>(fill)};
      std::copy_n(batch.stride, 1 + kAxes, body.stride);
      std::copy_n(batch.size, kAxes, body.size);
      for (int a = 0; a < kAxes; ++a) body.positions[a] = positions[a].data();
      const nb::gil_scoped_release release;
      launch::gather(launch::Queue{windows.device_id(), stream}, body);
    });
  });
}

void add(const Array& sums_array, const Input& windows, const std::vector<Table<float, 2>>& weights,
         const std::vector<Table<std::int64_t, 2>>& spans, const Table<std::int32_t, 2>& entries,
         const Table<float, 1>& constants, const std::vector<index_t>& lo, const std::vector<index_t>& hi,
         const std::optional<Table<std::int32_t, 1>>& poses, const std::optional<Table<float, 1>>& shares, float floor,
         std::uintptr_t stream) {
  const auto sums = floats(sums_array, "sums");
  check_device(sums_array, windows, "windows");
  const Batch batch = batch_of(windows, static_cast<int>(sums_array.ndim()) - 1);
  if (batch.channels != sums.shape[0]) refuse("windows must have as many channels as sums");
  check_tables(weights, sums_array, batch.size, "weights");
  const index_t three[kAxes] = {3, 3, 3};
  check_tables(spans, sums_array, three, "spans");
  const Entry* const entry = entries_of(entries, sums_array);
  if (static_cast<index_t>(entries.shape(0)) > launch::kMostEntries) {
    refuse("add takes " + std::to_string(launch::kMostEntries) + " entries at most: give them in several calls");
  }
  check_device(sums_array, constants, "constants");
  if (static_cast<index_t>(constants.shape(0)) != sums.shape[0]) refuse("constants must have one value per channel");
  if (lo.size() != kAxes || hi.size() != kAxes) refuse("lo and hi must have three values");
  for (int a = 0; a < kAxes; ++a) {
    if (lo[a] < 0 || hi[a] > sums.shape[1 + a]) refuse(std::string("axis ") + kNames[a] + ": lo and hi leave the sums");
  }
  const std::int32_t* const pose = per_entry(poses, entries, sums_array, "poses");
  const float* const share = per_entry(shares, entries, sums_array, "shares");
  with_window_type(windows, [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const index_t count = static_cast<index_t>(entries.shape(0));
    AddBody<T> body{sums, data,  batch.stride_n,   {}, {}, {}, {}, entry, pose, share, 0, count, constants.data(),
                    {},   {}, floor};
    std::copy_n(batch.stride, 1 + kAxes, body.stride);
    std::copy_n(batch.size, kAxes, body.size);
    for (int a = 0; a < kAxes; ++a) {
      body.weights[a] = weights[a].data();
      body.spans[a] = reinterpret_cast<const Span*>(spans[a].data());
      body.lo[a] = lo[a];
      body.hi[a] = hi[a];
    }
    const nb::gil_scoped_release release;
    launch::add(launch::Queue{sums_array.device_id(), stream}, body);
  });
}

void divide(const Array& sums_array, const std::vector<Table<float, 2>>& covers, float floor, std::uintptr_t stream) {
  DivideBody body{floats(sums_array, "sums"), {}, {}, floor};
  check_tables(covers, sums_array, body.sums.shape + 1, "covers");
  for (int a = 0; a < kAxes; ++a) {
    body.covers[a] = covers[a].data();
    body.windows[a] = static_cast<index_t>(covers[a].shape(0));
  }
  const nb::gil_scoped_release release;
  launch::divide(launch::Queue{sums_array.device_id(), stream}, body);
}

void pack(const Input& sums_array, const Array& out_array, const std::vector<index_t>& at, std::uintptr_t stream) {
  check_device(sums_array, out_array, "out");
  if (out_array.ndim() != sums_array.ndim()) refuse("out must have the axes of sums");
  const auto out = floats(out_array, "out");
  const PackBody body{constant(part_of(sums_array, out, at, "out")), out};
  const nb::gil_scoped_release release;
  launch::pack(launch::Queue{out_array.device_id(), stream}, body);
}

void merge(const Array& sums_array, const Input& halo_array, const std::vector<index_t>& at, std::uintptr_t stream) {
  check_device(sums_array, halo_array, "halo");
  if (halo_array.ndim() != sums_array.ndim()) refuse("halo must have the axes of sums");
  const auto halo = floats(halo_array, "halo");
  const MergeBody body{part_of(sums_array, halo, at, "halo"), constant(halo)};
  const nb::gil_scoped_release release;
  launch::merge(launch::Queue{sums_array.device_id(), stream}, body);
}

nb::dlpack::dtype type_of(const std::string& name) {
  const auto make = [](Code code, int bits) {
    return nb::dlpack::dtype{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  };
  if (name == "bool") return make(Code::UInt, 8);
  if (name == "bfloat16") return make(Code::Bfloat, 16);
  const std::size_t digits = name.find_first_of("123456789");
  const int bits = digits == std::string::npos ? 0 : std::atoi(name.c_str() + digits);
  const std::string kind = name.substr(0, digits);
  const bool known = bits == 8 || bits == 16 || bits == 32 || bits == 64;
  if (known && kind == "uint") return make(Code::UInt, bits);
  if (known && kind == "int") return make(Code::Int, bits);
  if (known && bits > 8 && kind == "float") return make(Code::Float, bits);
  refuse("no element type " + name);
}

nb::ndarray<nb::array_api> array(std::uintptr_t address, const std::vector<std::size_t>& shape,
                                 const std::string& dtype, const std::optional<std::vector<std::int64_t>>& strides,
                                 nb::handle owner, int device) {
  if (strides && strides->size() != shape.size()) refuse("give one stride per axis");
  return nb::ndarray<nb::array_api>(reinterpret_cast<void*>(address), shape.size(), shape.data(), owner,
                                    strides ? strides->data() : nullptr, type_of(dtype), Where::value, device);
}

}  // namespace
}  // namespace unet_engine

#ifdef UNET_ENGINE_LOOP
NB_MODULE(_halo_loop, m) {
  m.doc() = "The kernels of the GPU in loops on the CPU, for tests.";
#else
NB_MODULE(_halo_cuda, m) {
  m.doc() = "CUDA implementation of unet_engine.stitching.operations on DLPack arrays.";
#endif
  using namespace unet_engine;
  using namespace nanobind::literals;
  m.attr("MOST_ENTRIES") = launch::kMostEntries;
  m.attr("MOST_HALOS") = kMostHalos;
  m.attr("MOST_REGIONS") = kMostRegions;
  m.def("array", &array, "address"_a, "shape"_a, "dtype"_a, "strides"_a = nb::none(), "owner"_a = nb::none(),
        nb::kw_only(), "device"_a = 0);
  m.def("gather", &gather, "windows"_a, "raw"_a, "positions"_a, "entries"_a, "order"_a, "scale"_a, "shift"_a, "fill"_a,
        nb::kw_only(), "limits"_a = nb::none(), "poses"_a = nb::none(), "stream"_a = 0);
  m.def("add", &add, "sums"_a, "windows"_a, "weights"_a, "spans"_a, "entries"_a, "constants"_a, "lo"_a, "hi"_a,
        nb::kw_only(), "poses"_a = nb::none(), "shares"_a = nb::none(), "floor"_a = 0.0f, "stream"_a = 0);
  m.def("divide", &divide, "sums"_a, "covers"_a, "floor"_a, nb::kw_only(), "stream"_a = 0);
  m.def("instance_norm", &instance_norm, "windows"_a, "outputs"_a, "scratch"_a, nb::kw_only(), "weight"_a = nb::none(),
        "bias"_a = nb::none(), "eps"_a = 1e-5, "slope"_a = 1.0f, "stream"_a = 0);
  m.def("instance_norm_scratch", &instance_norm_scratch, "windows"_a, "channels"_a, "voxels"_a);
  m.def("put", &put, "windows"_a, "output"_a, nb::kw_only(), "stream"_a = 0);
  m.def("pack", &pack, "sums"_a, "out"_a, "at"_a, nb::kw_only(), "stream"_a = 0);
  m.def("merge", &merge, "sums"_a, "halo"_a, "at"_a, nb::kw_only(), "stream"_a = 0);
  m.def("commit", &commit, "sums"_a, "out"_a, "kind"_a, "activation"_a, "halos"_a, "at"_a, "nonfinite"_a, nb::kw_only(),
        "above"_a = nb::none(), "order"_a = std::vector<std::uint16_t>{}, "stream"_a = 0);
  m.def("interpolate", &interpolate, "sums"_a, "out"_a, "first"_a, "weights"_a, "begin"_a, "kind"_a, "activation"_a,
        nb::kw_only(), "above"_a = nb::none(), "order"_a = std::vector<std::uint16_t>{}, "stream"_a = 0);
  m.def("resample", &resample, "scan"_a, "out"_a, "first"_a, "weights"_a, "begin"_a, nb::kw_only(),
        "scale"_a = nb::none(), "shift"_a = nb::none(), "limits"_a = nb::none(), "pivot"_a = nb::none(),
        "stream"_a = 0);
  m.def("clip", &clip_voxels, "voxels"_a, "low"_a, "high"_a, nb::kw_only(), "stream"_a = 0);
}
