// Arrays of a device as the Python module of its kernels gets them: their types and shapes checked, and as the kernels
// take them. Included by `device_module.cpp` alone, which is compiled for CUDA arrays and for arrays of the host.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include "launch.hpp"

namespace nb = nanobind;

namespace unet_engine {
namespace {

#ifdef UNET_ENGINE_LOOP
using Where = nb::device::cpu;
#else
using Where = nb::device::cuda;
#endif
using Array = nb::ndarray<Where>;
using Input = nb::ndarray<nb::ro, Where>;
template <typename T, std::size_t N>
using Table = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, Where>;
using Code = nb::dlpack::dtype_code;

constexpr char kNames[kAxes] = {'z', 'y', 'x'};

[[noreturn]] inline void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

template <typename A>
bool is(const A& array, Code code, int bits) {
  return array.dtype().code == static_cast<std::uint8_t>(code) && array.dtype().bits == bits &&
         array.dtype().lanes == 1;
}

// (channels, z, y, x) of an array of two or three spatial axes; an array of labels has no axis for channels.
template <typename T, typename A>
View<T> view(const A& array, const char* name, bool has_channels = true) {
  const int axes = static_cast<int>(array.ndim()) - (has_channels ? 1 : 0);
  if (axes != 2 && axes != 3) refuse(std::string(name) + " must have 2 or 3 spatial axes");
  // arrays that are only read come as const void*; every caller hands them on as const
  View<T> result{
      static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data()))), {1, 1, 1, 1}, {0, 0, 0, 0}};
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
View<float> floats(const A& array, const char* name) {
  if (!is(array, Code::Float, 32)) refuse(std::string(name) + " must be float32");
  if (array.ndim() > 0 && array.shape(0) == 0) refuse(std::string(name) + " has no channel: give at least one");
  return view<float>(array, name);
}

inline View<const float> constant(const View<float>& v) {
  View<const float> result{v.data, {}, {}};
  std::copy_n(v.shape, 1 + kAxes, result.shape);
  std::copy_n(v.stride, 1 + kAxes, result.stride);
  return result;
}

template <typename A, typename B>
void check_device(const A& first, const B& other, const char* name) {
  if (first.device_id() != other.device_id()) refuse(std::string(name) + " must be on the same device as the others");
}

// Windows (n, channels, spatial axes) of any strides.
struct Batch {
  index_t count, channels, stride_n;
  index_t size[kAxes];
  index_t stride[1 + kAxes];
};

template <typename A>
Batch batch_of(const A& windows, int axes) {
  if (static_cast<int>(windows.ndim()) != axes + 2)
    refuse("windows must be (windows, channels, spatial axes as the other array)");
  Batch b{static_cast<index_t>(windows.shape(0)),
          static_cast<index_t>(windows.shape(1)),
          windows.stride(0),
          {1, 1, 1},
          {windows.stride(1), 0, 0, 0}};
  for (int i = 0; i < axes; ++i) {
    b.size[kAxes - axes + i] = static_cast<index_t>(windows.shape(static_cast<std::size_t>(2 + i)));
    b.stride[1 + kAxes - axes + i] = windows.stride(static_cast<std::size_t>(2 + i));
  }
  return b;
}

// One table (spans, columns) per axis, always for three axes.
template <typename T>
void check_tables(const std::vector<Table<T, 2>>& tables, const Array& first, const index_t* columns,
                  const char* name) {
  if (tables.size() != kAxes) refuse(std::string(name) + " must be one table for each of z, y and x");
  for (int a = 0; a < kAxes; ++a) {
    check_device(first, tables[a], name);
    if (static_cast<index_t>(tables[a].shape(1)) != columns[a]) {
      refuse(std::string("axis ") + kNames[a] + ": " + name + " must be (spans, " + std::to_string(columns[a]) + ")");
    }
  }
}

inline const Entry* entries_of(const Table<std::int32_t, 2>& entries, const Array& first) {
  check_device(first, entries, "entries");
  if (entries.shape(1) != 1 + kAxes)
    refuse("entries must be (windows, 4): the span on z, y, x and the row of the batch");
  return reinterpret_cast<const Entry*>(entries.data());
}

// A vector of one value per entry, where it is given.
template <typename T>
const T* per_entry(const std::optional<Table<T, 1>>& vector, const Table<std::int32_t, 2>& entries, const Array& first,
                   const char* name) {
  if (!vector.has_value()) return nullptr;
  check_device(first, *vector, name);
  if (vector->shape(0) != entries.shape(0)) refuse(std::string(name) + " must have one value per entry");
  return vector->data();
}

template <typename F>
void with_window_type(const Input& windows, const F& f) {
  if (is(windows, Code::Float, 32)) return f(static_cast<const float*>(windows.data()));
  if (is(windows, Code::Float, 16)) return f(static_cast<const Half*>(windows.data()));
  if (is(windows, Code::Bfloat, 16)) return f(static_cast<const BFloat16*>(windows.data()));
  refuse("windows must be float32, float16 or bfloat16");
}

template <typename F>
void with_block_type(const Input& raw, const F& f) {
  if (is(raw, Code::Bool, 8) || is(raw, Code::UInt, 8)) return f(static_cast<const std::uint8_t*>(raw.data()));
  if (is(raw, Code::Int, 8)) return f(static_cast<const std::int8_t*>(raw.data()));
  if (is(raw, Code::UInt, 16)) return f(static_cast<const std::uint16_t*>(raw.data()));
  if (is(raw, Code::Int, 16)) return f(static_cast<const std::int16_t*>(raw.data()));
  if (is(raw, Code::UInt, 32)) return f(static_cast<const std::uint32_t*>(raw.data()));
  if (is(raw, Code::Int, 32)) return f(static_cast<const std::int32_t*>(raw.data()));
  if (is(raw, Code::UInt, 64)) return f(static_cast<const std::uint64_t*>(raw.data()));
  if (is(raw, Code::Int, 64)) return f(static_cast<const std::int64_t*>(raw.data()));
  if (is(raw, Code::Float, 16)) return f(static_cast<const Half*>(raw.data()));
  if (is(raw, Code::Float, 32)) return f(static_cast<const float*>(raw.data()));
  if (is(raw, Code::Float, 64)) return f(static_cast<const double*>(raw.data()));
  refuse("raw must be bool, an integer or a float");
}

}  // namespace
}  // namespace unet_engine
