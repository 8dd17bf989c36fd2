// The CPU half of stitching as the Python module `unet_engine.stitching._halo`.
// `engine/unet_engine/stitching/operations.py` checks types and shapes and says what each function means; what guards
// memory (bounds, channels, strides) is checked here once more. Every function releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "arithmetic.hpp"
#include "interpolate.hpp"
#include "parallel.hpp"
#include "rows.hpp"

namespace nb = nanobind;

namespace unet_engine {
namespace {

using Array = nb::ndarray<nb::device::cpu>;            // to be written
using Input = nb::ndarray<nb::ro, nb::device::cpu>;    // only read
template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // of each voxel, its taps
using Table = nb::ndarray<const double, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;  // a `Limits` per channel
using Covers = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // (windows, voxels of the axis)
template <typename T>
using PerAxis = std::array<T, kAxes>;
using Corner = PerAxis<index_t>;

constexpr index_t kFeatures = 128;  // voxels whose features stay in the first-level cache

constexpr char kNames[kAxes] = {'z', 'y', 'x'};

[[noreturn]] void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

// The array as (channels, z, y, x); `rows` asks for a contiguous last axis.
template <typename T, typename A>
View<T> view(const A& array, const char* name, bool rows = true) {
  using Plain = std::remove_const_t<T>;
  constexpr std::size_t size = sizeof(Plain);
  if (array.ndim() != 1 + kAxes) refuse(std::string(name) + " must have 4 axes");
  if (static_cast<std::size_t>(array.dtype().bits) != 8 * size)
    refuse(std::string(name) + " has another item size than named");
  View<T> result{static_cast<T*>(array.data()), {}, {}};
  rows = rows && array.size() > 0;  // the strides of an empty array may be anything
  for (int axis = 0; axis <= kAxes; ++axis) {
    result.shape[axis] = static_cast<index_t>(array.shape(axis));
    result.stride[axis] = array.stride(axis);
  }
  if (rows && result.shape[kAxes] > 1 && result.stride[kAxes] != 1)
    refuse(std::string(name) + " must be contiguous on its last axis");
  return result;
}

// Calls f with a null pointer of the C++ type that goes by this name; one of HALO_BLOCK_TYPES or HALO_WINDOW_TYPES.
template <typename F>
auto with_block_type(const std::string& name, const F& f) {
  if (name == "bool" || name == "uint8") return f(static_cast<std::uint8_t*>(nullptr));
  if (name == "int8") return f(static_cast<std::int8_t*>(nullptr));
  if (name == "uint16") return f(static_cast<std::uint16_t*>(nullptr));
  if (name == "int16") return f(static_cast<std::int16_t*>(nullptr));
  if (name == "uint32") return f(static_cast<std::uint32_t*>(nullptr));
  if (name == "int32") return f(static_cast<std::int32_t*>(nullptr));
  if (name == "uint64") return f(static_cast<std::uint64_t*>(nullptr));
  if (name == "int64") return f(static_cast<std::int64_t*>(nullptr));
  if (name == "float16") return f(static_cast<Half*>(nullptr));
  if (name == "float32") return f(static_cast<float*>(nullptr));
  if (name == "float64") return f(static_cast<double*>(nullptr));
  refuse("no block of type " + name);
}

template <typename F>
void with_window_type(const std::string& name, const F& f) {
  if (name == "float32") return f(static_cast<float*>(nullptr));
  if (name == "float16") return f(static_cast<Half*>(nullptr));
  if (name == "bfloat16") return f(static_cast<BFloat16*>(nullptr));
  refuse("no window of type " + name);
}

void check_channels(index_t given, index_t expected, const char* name) {
  if (given != expected) refuse(std::string(name) + " must have as many channels as the other array");
}

// [lo, hi) must lie in `window` and, moved by `at`, in `sums`; shapes without the channels.
void check_span(const index_t* sums, const Corner& window, const Corner& at, const Corner& lo, const Corner& hi) {
  for (int a = 0; a < kAxes; ++a) {
    const bool inside = 0 <= lo[a] && lo[a] <= hi[a] && hi[a] <= window[a] && lo[a] >= -at[a] &&
                        at[a] <= std::numeric_limits<index_t>::max() - hi[a] && at[a] + hi[a] <= sums[a];
    if (!inside) refuse(std::string("axis ") + kNames[a] + ": the range leaves the window or the sums");
  }
}

// body(k, z, y, y_end) over the planes of (channels, shape), split by rows among the threads.
template <typename Body>
void for_planes(index_t channels, const Corner& shape, int threads, const Body& body) {
  const index_t ny = shape[1];
  parallel_rows(channels * shape[0] * ny, shape[2], threads, [&](index_t begin, index_t end) {
    for (index_t row = begin; row < end;) {
      const index_t plane = row / ny, y = row % ny;
      const index_t y_end = std::min(ny, y + (end - row));
      body(plane / shape[0], plane % shape[0], y, y_end);
      row += y_end - y;
    }
  });
}

// ---- gather ---------------------------------------------------------------------------------------------------------

// A stretch of a window's row: `first` >= 0 the lowest position of a run of consecutive ones in the block, kOutside, or
// kScattered. A mirrored window has its runs backwards.
struct Stretch {
  index_t begin, end, first;
  bool backwards;
};
constexpr index_t kOutside = -1, kScattered = -2, kShortest = 8;

std::vector<Stretch> stretches_of(const std::int64_t* index, index_t n) {
  std::vector<Stretch> result;
  for (index_t i = 0; i < n;) {
    index_t end = i + 1;
    const bool outside = index[i] < 0;
    const bool backwards = !outside && end < n && index[end] >= 0 && index[end] == index[i] - 1;
    const index_t step = backwards ? -1 : 1;
    while (end < n && index[end] == (outside ? kOutside : index[end - 1] + step)) {
      if (!outside && index[end] < 0) break;  // a run backwards ends at position 0
      ++end;
    }
    const bool scattered = !outside && end - i < kShortest;
    if (scattered && !result.empty() && result.back().first == kScattered) {
      result.back().end = end;
    } else {
      const index_t first = backwards ? index[end - 1] : index[i];
      result.push_back({i, end, outside ? kOutside : scattered ? kScattered : first, backwards});
    }
    i = end;
  }
  return result;
}

void check_index(const Vector<std::int64_t>& index, index_t size, int axis) {
  for (std::size_t i = 0; i < index.size(); ++i) {
    const std::int64_t position = index.data()[i];
    if (position < -1 || position >= size) {
      const std::string text = std::string("axis ") + kNames[axis] + ": index " + std::to_string(position) +
                               " leaves -1.." + std::to_string(size - 1) + ": clip or pad it first";
      throw nb::index_error(text.c_str());
    }
  }
}

// How one channel is normalised; `limits` may be null.
struct Rule {
  double shift, scale;
  const Limits* limits;

  template <typename T>
  void row(float* out, const T* in, index_t n) const {
    limits == nullptr ? normalise_row(out, in, n, shift, scale) : normalise_row(out, in, n, shift, scale, *limits);
  }

  template <typename T>
  float voxel(T value) const {
    return limits == nullptr ? normalise(value, shift, scale) : normalise(value, shift, scale, *limits);
  }
};

template <typename T>
void gather_row(float* out, const T* row, index_t stride, const std::vector<Stretch>& stretches,
                const std::int64_t* index, const Rule& rule, float fill) {
  for (const Stretch& s : stretches) {
    if (s.first == kOutside) {
      std::fill(out + s.begin, out + s.end, fill);
    } else if (s.first >= 0 && stride == 1) {
      rule.row(out + s.begin, row + s.first, s.end - s.begin);
      if (s.backwards) std::reverse(out + s.begin, out + s.end);  // in the first-level cache
    } else {
      for (index_t x = s.begin; x < s.end; ++x) out[x] = rule.voxel(row[index[x] * stride]);
    }
  }
}

void gather(const Array& out_array, const Input& block_array, const std::string& type,
            const PerAxis<Vector<std::int64_t>>& index, const Vector<double>& scale, const Vector<double>& shift,
            const std::optional<Table>& limits, float fill, int threads) {
  const auto out = view<float>(out_array, "out");
  const Corner shape{out.shape[1], out.shape[2], out.shape[3]};
  check_channels(static_cast<index_t>(block_array.shape(0)), out.shape[0], "block");
  check_channels(static_cast<index_t>(scale.size()), out.shape[0], "scale");
  check_channels(static_cast<index_t>(shift.size()), out.shape[0], "shift");
  if (limits.has_value()) check_channels(static_cast<index_t>(limits->shape(0)), out.shape[0], "limits");
  for (int a = 0; a < kAxes; ++a) {
    if (static_cast<index_t>(index[a].size()) != shape[a]) refuse("index must be as long as out on every axis");
    check_index(index[a], static_cast<index_t>(block_array.shape(a + 1)), a);
  }
  static_assert(sizeof(Limits) == 4 * sizeof(double));
  const auto* const bounds = limits.has_value() ? reinterpret_cast<const Limits*>(limits->data()) : nullptr;
  with_block_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto block = view<const T>(block_array, "block", false);
    const nb::gil_scoped_release release;
    const auto stretches = stretches_of(index[2].data(), shape[2]);
    for_planes(out.shape[0], shape, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
      const index_t from_z = index[0].data()[z];
      const Rule rule{shift.data()[k], scale.data()[k], bounds == nullptr ? nullptr : bounds + k};
      for (; y < y_end; ++y) {
        const index_t from_y = index[1].data()[y];
        float* row = out.at(k, z, y, 0);
        if (from_z < 0 || from_y < 0) {
          std::fill_n(row, shape[2], fill);
        } else {
          gather_row(row, block.at(k, from_z, from_y, 0), block.stride[3], stretches, index[2].data(), rule, fill);
        }
      }
    });
  });
}

// ---- blending -------------------------------------------------------------------------------------------------------

Corner extent(const Corner& lo, const Corner& hi) { return {hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]}; }

Corner lengths(const PerAxis<Vector<float>>& weights) {
  return {static_cast<index_t>(weights[0].size()), static_cast<index_t>(weights[1].size()),
          static_cast<index_t>(weights[2].size())};
}

void add(const Array& sums_array, const Input& window_array, const std::string& type,
         const PerAxis<Vector<float>>& weights, const Corner& at, const Corner& lo, const Corner& hi, int threads,
         float floor) {
  const auto sums = view<float>(sums_array, "sums");
  with_window_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto window = view<const T>(window_array, "window", false);
    const Corner size{window.shape[1], window.shape[2], window.shape[3]};
    check_channels(window.shape[0], sums.shape[0], "window");
    if (lengths(weights) != size) refuse("weights must be as long as the window on every axis");
    check_span(sums.shape + 1, size, at, lo, hi);
    const nb::gil_scoped_release release;
    const Corner part = extent(lo, hi);
    for_planes(sums.shape[0], part, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
      add_rows(sums.at(k, at[0] + lo[0] + z, at[1] + lo[1] + y, at[2] + lo[2]), sums.stride[2],
               window.at(k, lo[0] + z, lo[1] + y, lo[2]), window.stride[2], window.stride[3],
               weights[0].data()[lo[0] + z],
               weights[1].data() + lo[1] + y, weights[2].data() + lo[2], floor, y_end - y, part[2]);
    });
  });
}

void add_constant(const Array& sums_array, const Vector<float>& values, const PerAxis<Vector<float>>& weights,
                  const Corner& at, const Corner& lo, const Corner& hi, int threads, float floor) {
  const auto sums = view<float>(sums_array, "sums");
  check_channels(static_cast<index_t>(values.size()), sums.shape[0], "values");
  check_span(sums.shape + 1, lengths(weights), at, lo, hi);
  const nb::gil_scoped_release release;
  const Corner part = extent(lo, hi);
  for_planes(sums.shape[0], part, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
    add_constant_rows(sums.at(k, at[0] + lo[0] + z, at[1] + lo[1] + y, at[2] + lo[2]), sums.stride[2], values.data()[k],
                      weights[0].data()[lo[0] + z], weights[1].data() + lo[1] + y, weights[2].data() + lo[2], floor,
                      y_end - y, part[2]);
  });
}

void divide(const Array& sums_array, const PerAxis<Covers>& covers, float floor, int threads) {
  const auto sums = view<float>(sums_array, "sums");
  const Corner shape{sums.shape[1], sums.shape[2], sums.shape[3]};
  for (int a = 0; a < kAxes; ++a) check_channels(static_cast<index_t>(covers[a].shape(1)), shape[a], "covers");
  const nb::gil_scoped_release release;
  const auto weight = [&](int a, index_t window, index_t x) { return covers[a].data()[window * shape[a] + x]; };
  const auto windows = [&](int a) { return static_cast<index_t>(covers[a].shape(0)); };
  parallel_rows(shape[0] * shape[1], shape[2] * sums.shape[0], threads, [&](index_t begin, index_t end) {
    std::vector<float> total(static_cast<std::size_t>(shape[2]));
    for (index_t row = begin; row < end; ++row) {
      const index_t z = row / shape[1], y = row % shape[1];
      std::fill(total.begin(), total.end(), 0.0f);
      for (index_t a = 0; a < windows(0); ++a) {
        for (index_t b = 0; b < windows(1); ++b) {
          const float wz = weight(0, a, z), wy = weight(1, b, y);
          if (wz < 0.0f || wy < 0.0f) continue;
          for (index_t c = 0; c < windows(2); ++c) share_row(total.data(), wz, wy, covers[2].data() + c * shape[2], floor, shape[2]);
        }
      }
      for (index_t k = 0; k < sums.shape[0]; ++k) divide_row(sums.at(k, z, y, 0), total.data(), shape[2]);
    }
  });
}

void merge(const Array& sums_array, const Input& halo_array, const Corner& at, int threads) {
  const auto sums = view<float>(sums_array, "sums");
  const auto halo = view<const float>(halo_array, "halo");
  const Corner size{halo.shape[1], halo.shape[2], halo.shape[3]};
  check_channels(halo.shape[0], sums.shape[0], "halo");
  check_span(sums.shape + 1, size, at, {0, 0, 0}, size);
  const nb::gil_scoped_release release;
  for_planes(sums.shape[0], size, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
    for (; y < y_end; ++y) merge_row(sums.at(k, at[0] + z, at[1] + y, at[2]), halo.at(k, z, y, 0), size[2]);
  });
}

// ---- reduction ------------------------------------------------------------------------------------------------------

template <typename T>
Corner check_out(const View<T>& out, const View<const float>& sums, index_t channels) {
  check_channels(out.shape[0], channels, "out");
  for (int a = 1; a <= kAxes; ++a) {
    if (out.shape[a] != sums.shape[a]) refuse("out must have the shape of sums");
  }
  return {sums.shape[1], sums.shape[2], sums.shape[3]};
}

template <typename T>
void labels(const Input& sums_array, const Array& out_array, std::optional<float> above, int threads) {
  const auto sums = view<const float>(sums_array, "sums");
  const auto out = view<T>(out_array, "out");
  const Corner shape = check_out(out, sums, 1);
  const index_t channels = sums.shape[0];
  const LabelRule rule{above.has_value(), above.value_or(0.0f)};
  const nb::gil_scoped_release release;
  // A row costs as much as its channels: count them, so that a small image of many classes is split as well.
  parallel_rows(shape[0] * shape[1], shape[2] * channels, threads, [&](index_t begin, index_t end) {
    for (index_t row = begin; row < end; ++row) {
      const index_t z = row / shape[1], y = row % shape[1];
      label_row(out.at(0, z, y, 0), sums.at(0, z, y, 0), sums.stride[0], channels, shape[2], rule);
    }
  });
}

template <typename T>
void softmax(const View<const float>& sums, const View<T>& out, const Corner& shape, int threads) {
  const index_t channels = sums.shape[0];
  const index_t strip =
      std::max<index_t>(64, std::min<index_t>(kStrip, 32768 / channels));  // 128 KiB: the second-level cache
  parallel_rows(shape[0] * shape[1], shape[2] * channels, threads, [&](index_t begin, index_t end) {
    std::vector<float> scratch(static_cast<std::size_t>(channels * strip));
    for (index_t row = begin; row < end; ++row) {
      const index_t z = row / shape[1], y = row % shape[1];
      for (index_t x = 0; x < shape[2]; x += strip) {
        softmax_row(out.at(0, z, y, x), out.stride[0], sums.at(0, z, y, x), sums.stride[0], channels,
                    std::min(strip, shape[2] - x), scratch.data());
      }
    }
  });
}

template <typename T>
void probabilities(const Input& sums_array, const Array& out_array, const std::string& activation, int threads) {
  const auto sums = view<const float>(sums_array, "sums");
  const auto out = view<T>(out_array, "out");
  const Corner shape = check_out(out, sums, sums.shape[0]);
  const nb::gil_scoped_release release;
  if (activation == "softmax") return softmax(sums, out, shape, threads);
  const bool is_sigmoid = activation == "sigmoid";
  for_planes(sums.shape[0], shape, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
    for (; y < y_end; ++y) {
      T* row = out.at(k, z, y, 0);
      const float* in = sums.at(k, z, y, 0);
      is_sigmoid ? sigmoid_row(row, in, shape[2]) : clip_row(row, in, shape[2]);
    }
  });
}

template <typename T>
void logits(const Input& sums_array, const Array& out_array, int threads) {
  const auto sums = view<const float>(sums_array, "sums");
  const auto out = view<T>(out_array, "out");
  const Corner shape = check_out(out, sums, sums.shape[0]);
  const nb::gil_scoped_release release;
  for_planes(sums.shape[0], shape, threads, [&](index_t k, index_t z, index_t y, index_t y_end) {
    for (; y < y_end; ++y) cast_row(out.at(k, z, y, 0), sums.at(k, z, y, 0), shape[2]);
  });
}

void linear(const Array& out_array, const Input& in_array, const Weights& weights, const Vector<float>& bias,
            int threads) {
  const auto out = view<float>(out_array, "out");
  const auto in = view<const float>(in_array, "features");
  const index_t classes = out.shape[0], features = in.shape[0];
  const Corner shape{in.shape[1], in.shape[2], in.shape[3]};
  for (int a = 0; a < kAxes; ++a) check_channels(out.shape[1 + a], shape[a], "out");
  check_channels(static_cast<index_t>(weights.shape(0)), classes, "weights");
  check_channels(static_cast<index_t>(weights.shape(1)), features, "weights");
  check_channels(static_cast<index_t>(bias.size()), classes, "bias");
  if (features < 1) refuse("features must have a channel");
  const nb::gil_scoped_release release;
  parallel_rows(shape[0] * shape[1], shape[2] * classes, threads, [&](index_t begin, index_t end) {
    // Features lie in `in` at distances that may be powers of two, which all fall into a few sets of the first-level
    // cache. Side by side they stay in it while all classes are made of them.
    std::vector<float> together(static_cast<std::size_t>(features * kFeatures));
    for (index_t row = begin; row < end; ++row) {
      const index_t z = row / shape[1], y = row % shape[1];
      for (index_t x = 0; x < shape[2]; x += kFeatures) {
        const index_t n = std::min(kFeatures, shape[2] - x);
        for (index_t t = 0; t < features; ++t) std::copy_n(in.at(t, z, y, x), n, together.data() + t * kFeatures);
        for (index_t k = 0; k < classes; ++k) {
          linear_row(out.at(k, z, y, x), together.data(), kFeatures, weights.data() + k * features, features,
                     bias.data()[k], n);
        }
      }
    }
  });
}

// ---- interpolation ------------------------------------------------------------------------------------------------

Taps taps_of(const Vector<std::int64_t>& first, const Weights& weights, index_t source, index_t size, int axis) {
  const Taps taps{first.data(), weights.data(), static_cast<index_t>(first.size()),
                  static_cast<index_t>(weights.shape(1))};
  if (static_cast<index_t>(weights.shape(0)) != taps.size || taps.size != size) {
    refuse("tables must be as long as out on every axis");
  }
  for (index_t i = 0; i < taps.size; ++i) {
    if (taps.taps < 1 || taps.first[i] < 0 || taps.first[i] > source - taps.taps) {
      const std::string text = std::string("axis ") + kNames[axis] + ": a voxel is made of others than the block has";
      throw nb::index_error(text.c_str());
    }
  }
  return taps;
}

void interpolate(const Array& out_array, const Input& block_array, const PerAxis<Vector<std::int64_t>>& first,
                 const PerAxis<Weights>& weights, int threads) {
  const auto out = view<float>(out_array, "out");
  const auto block = view<const float>(block_array, "block");
  check_channels(block.shape[0], out.shape[0], "block");
  const Taps axes[kAxes]{taps_of(first[0], weights[0], block.shape[1], out.shape[1], 0),
                         taps_of(first[1], weights[1], block.shape[2], out.shape[2], 1),
                         taps_of(first[2], weights[2], block.shape[3], out.shape[3], 2)};
  const nb::gil_scoped_release release;
  const index_t planes = out.shape[1];
  const index_t work = out.shape[2] * out.shape[3] * axes[0].taps;
  parallel_rows(out.shape[0] * planes, work, threads, [&](index_t begin, index_t end) {
    Interpolator interpolator(block, axes);
    for (index_t plane = begin; plane < end; ++plane) {
      const index_t k = plane / planes, z = plane % planes;
      interpolator.plane(k, z, out.at(k, z, 0, 0), out.stride[2]);
    }
  });
}

bool is_constant(const Input& block_array, const std::string& type, const Corner& lo, const Corner& hi,
                 const Input& value) {
  return with_block_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto block = view<const T>(block_array, "block", false);
    const Corner size{block.shape[1], block.shape[2], block.shape[3]};
    check_span(size.data(), size, {0, 0, 0}, lo, hi);
    if (value.size() != 1 || static_cast<std::size_t>(value.dtype().bits) != 8 * sizeof(T))
      refuse("value must be one element");
    const T wanted = *static_cast<const T*>(value.data());
    const nb::gil_scoped_release release;
    const DefaultFloatMode mode;
    const Corner part = extent(lo, hi);
    // Where whole rows follow each other, a plane is one long row; where the last axis has a stride, a row is many
    // short ones.
    const bool joined = block.stride[3] == 1 && block.stride[2] == part[2];
    const bool split = block.stride[3] != 1 && part[2] > 1;
    const index_t rows = joined ? 1 : part[1], pieces = split ? part[2] : 1;
    const index_t length = joined ? part[1] * part[2] : split ? 1 : part[2];
    for (index_t k = 0; k < block.shape[0]; ++k) {
      for (index_t z = 0; z < part[0]; ++z) {
        for (index_t y = 0; y < rows; ++y) {
          const T* row = block.at(k, lo[0] + z, lo[1] + y, lo[2]);
          for (index_t x = 0; x < pieces; ++x) {
            if (!row_equals(row + x * block.stride[3], length, wanted)) return false;
          }
        }
      }
    }
    return true;
  });
}

}  // namespace
}  // namespace unet_engine

NB_MODULE(_halo, m) {
  using namespace unet_engine;
  m.doc() = "CPU implementation of unet_engine.stitching.operations; call that instead.";
  m.def("gather", &gather, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
        nb::arg(), nb::arg());
  m.def("add", &add, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg() = 0.0f);
  m.def("add_constant", &add_constant, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg() = 0.0f);
  m.def("divide", &divide);
  m.def("merge", &merge);
  m.def("labels_uint8", &labels<std::uint8_t>);
  m.def("labels_uint16", &labels<std::uint16_t>);
  m.def("probabilities_uint8", &probabilities<std::uint8_t>);
  m.def("probabilities_float16", &probabilities<Half>);
  m.def("probabilities_float32", &probabilities<float>);
  m.def("logits_float32", &logits<float>);
  m.def("logits_float16", &logits<Half>);
  m.def("linear", &linear);
  m.def("interpolate", &interpolate);
  m.def("is_constant", &is_constant);
}
