// The Python side of what ends in voxels of the output, `commit` and `interpolate`: checks before anything is queued, and
// the type that each output is made by. Included by `device_module.cpp` alone.
#pragma once

#include "device_arrays.hpp"

namespace unet_engine {
namespace {

// Both arrays as (channels, z, y, x), the part at `at` of the first having the shape of the second.
template <typename A>
View<float> part_of(const A& sums_array, const View<float>& part, const std::vector<index_t>& at, const char* name) {
  auto sums = floats(sums_array, "sums");
  if (at.size() + 1 != sums_array.ndim()) refuse("at must have the spatial axes of sums");
  if (part.shape[0] != sums.shape[0]) refuse(std::string(name) + " must have as many channels as sums");
  for (std::size_t i = 0; i < at.size(); ++i) {
    const int a = kAxes - static_cast<int>(at.size()) + static_cast<int>(i);
    const index_t size = part.shape[1 + a];
    if (at[i] < 0 || at[i] > sums.shape[1 + a] - size)
      refuse(std::string("axis ") + kNames[a] + ": " + name + " leaves the sums");
    sums.data += at[i] * sums.stride[1 + a];
    sums.shape[1 + a] = size;
  }
  return sums;
}

// What `commit` was asked for.
struct Commit {
  const Array& sums_array;
  const Array& out_array;
  const std::vector<Input>& halos;
  const std::vector<std::vector<index_t>>& at;
  std::int32_t* nonfinite;
  std::uintptr_t stream;

  template <typename Finish>
  void as(const Finish& finish, bool is_label) const {
    using T = typename Finish::Out;
    const auto sums = floats(sums_array, "sums");
    CommitBody<Finish> body{finish, sums, view<T>(out_array, "out", !is_label), {}, static_cast<int>(halos.size()),
                            nonfinite};
    if (!std::equal(body.out.shape + 1, body.out.shape + 1 + kAxes, sums.shape + 1))
      refuse("out must have the shape of sums");
    if (!is_label && body.out.shape[0] != sums.shape[0]) refuse("out must have as many channels as sums");
    for (std::size_t h = 0; h < halos.size(); ++h) {
      check_device(sums_array, halos[h], "halos");
      if (halos[h].ndim() != sums_array.ndim()) refuse("halos must have the axes of sums");
      const auto halo = floats(halos[h], "halo");
      part_of(sums_array, halo, at[h], "halo");
      HaloPart& part = body.halos[h];
      part.values = constant(halo);
      std::fill_n(part.at, kAxes, index_t{0});
      std::copy(at[h].begin(), at[h].end(), part.at + kAxes - at[h].size());
    }
    const nb::gil_scoped_release release;
    launch::commit(launch::Queue{sums_array.device_id(), stream}, body);
  }
};

template <typename T, std::size_t N>
using AxisTables = std::vector<std::optional<Table<T, N>>>;

// What voxels of another grid are made of, as they were given for each axis.
struct GridTables {
  const Array& array;  // that lies where they must lie
  const AxisTables<std::int32_t, 1>& first;
  const AxisTables<float, 2>& weights;
  const std::vector<index_t>& begin;

  // Of axis `a`, along which what is interpolated has `source` voxels.
  GridAxis axis(int a, index_t source) const {
    if (first.size() != kAxes || weights.size() != kAxes || begin.size() != kAxes)
      refuse("first, weights and begin must be one for each of z, y and x");
    const std::string name = std::string("axis ") + kNames[a] + ": ";
    if (first[a].has_value() != weights[a].has_value()) refuse(name + "give both first and weights, or neither");
    if (!first[a].has_value()) return {nullptr, nullptr, source, 1, 0};
    check_device(array, *first[a], "first");
    check_device(array, *weights[a], "weights");
    const index_t size = static_cast<index_t>(first[a]->shape(0)), taps = static_cast<index_t>(weights[a]->shape(1));
    if (static_cast<index_t>(weights[a]->shape(0)) != size) refuse(name + "weights must have a row for each voxel");
    if (taps < 1 || taps > source) refuse(name + "a voxel is made of more than there is");
    return {first[a]->data(), weights[a]->data(), size, taps, begin[a]};
  }

  void check_size(int a, const GridAxis& axis, index_t out, const char* source) const {
    if (axis.size != out)
      refuse(std::string("axis ") + kNames[a] + ": out must be as long as its table, or as " + source +
             " where there is none");
  }
};

// What `interpolate` was asked for.
struct Interpolation {
  const Array& sums_array;
  const Array& out_array;
  const AxisTables<std::int32_t, 1>& first;
  const AxisTables<float, 2>& weights;
  const std::vector<index_t>& begin;
  std::uintptr_t stream;

  template <typename Finish>
  void as(const Finish& finish, bool is_label) const {
    using T = typename Finish::Out;
    const auto sums = floats(sums_array, "sums");
    InterpolateBody<Finish> body{finish, constant(sums), view<T>(out_array, "out", !is_label), {}};
    if (!is_label && body.out.shape[0] != sums.shape[0]) refuse("out must have as many channels as sums");
    const GridTables tables{sums_array, first, weights, begin};
    for (int a = 0; a < kAxes; ++a) {
      body.axes[a] = tables.axis(a, sums.shape[1 + a]);
      tables.check_size(a, body.axes[a], body.out.shape[1 + a], "sums");
    }
    const nb::gil_scoped_release release;
    launch::interpolate(launch::Queue{sums_array.device_id(), stream}, body);
  }
};

template <typename Work>
void finish_labels(const Work& given, LabelRule rule) {
  const index_t channels = static_cast<index_t>(given.sums_array.shape(0));
  const auto check_highest = [&](index_t highest) {
    if (channels - (rule.threshold ? 0 : 1) > highest) refuse("labels do not fit into the type of out: take uint16");
  };
  if (is(given.out_array, Code::UInt, 8)) {
    check_highest(std::numeric_limits<std::uint8_t>::max());
    return given.as(ToLabel<std::uint8_t>{rule}, true);
  }
  if (is(given.out_array, Code::UInt, 16)) {
    check_highest(std::numeric_limits<std::uint16_t>::max());
    return given.as(ToLabel<std::uint16_t>{rule}, true);
  }
  refuse("labels must be uint8 or uint16");
}

template <typename T, typename Work>
void finish_regions_as(const Work& given, float above, const std::vector<std::uint16_t>& order) {
  ToRegions<T> finish{above, {}};
  for (std::size_t k = 0; k < order.size(); ++k) {
    if (order[k] > std::numeric_limits<T>::max()) refuse("labels do not fit into the type of out: take uint16");
    finish.order[k] = order[k];
  }
  given.as(finish, true);
}

template <typename Work>
void finish_regions(const Work& given, float above, const std::vector<std::uint16_t>& order) {
  if (order.size() != given.sums_array.shape(0)) refuse("order must have one label per channel");
  if (order.size() > kMostRegions) refuse("a kernel takes " + std::to_string(kMostRegions) + " regions at most");
  if (is(given.out_array, Code::UInt, 8)) return finish_regions_as<std::uint8_t>(given, above, order);
  if (is(given.out_array, Code::UInt, 16)) return finish_regions_as<std::uint16_t>(given, above, order);
  refuse("labels must be uint8 or uint16");
}

inline bool are_probabilities(const std::string& activation) {
  return activation == "probabilities" || activation == "probabilities_each";
}

// As `label_threshold` of operations.py has it.
inline LabelRule label_rule(const std::string& activation, std::size_t channels) {
  const bool threshold = channels == 1 || activation == "sigmoid" || activation == "probabilities_each";
  return {threshold, are_probabilities(activation) ? kAboveHalf : 0.0f};
}

template <typename T, typename Work>
void finish_probabilities(const Work& given, const std::string& activation) {
  if (activation == "softmax") return given.as(ToSoftmax<T>{}, false);
  given.as(ToProbability<T>{activation == "sigmoid"}, false);
}

// Does what was asked for as `kind` and `activation` say.
template <typename Work>
void finish(const Work& given, const std::string& kind, const std::string& activation, std::optional<float> above,
            const std::vector<std::uint16_t>& order) {
  const Array &sums = given.sums_array, &out = given.out_array;
  check_device(sums, out, "out");
  if (activation != "softmax" && activation != "sigmoid" && activation != "none" && !are_probabilities(activation)) {
    refuse("unknown activation '" + activation +
           "': take one of softmax, sigmoid, none, probabilities, probabilities_each");
  }
  if (sums.ndim() == 0 || sums.shape(0) == 0) refuse("sums has no channel: give at least one");
  const auto rule = [&](std::size_t channels) {
    const LabelRule usual = label_rule(activation, channels);
    return LabelRule{usual.threshold, above.value_or(usual.above)};
  };
  if (kind == "labels") return finish_labels(given, rule(sums.shape(0)));
  if (kind == "regions") return finish_regions(given, rule(1).above, order);
  if (kind == "probabilities") {
    if (is(out, Code::UInt, 8)) return finish_probabilities<std::uint8_t>(given, activation);
    if (is(out, Code::Float, 16)) return finish_probabilities<Half>(given, activation);
    if (is(out, Code::Float, 32)) return finish_probabilities<float>(given, activation);
    refuse("probabilities must be uint8, float16 or float32");
  }
  if (kind == "masks") {
    if (!is(out, Code::UInt, 8)) refuse("masks must be uint8");
    return given.as(ToMask<std::uint8_t>{rule(1).above}, false);
  }
  if (kind != "logits") refuse("unknown kind '" + kind + "': take one of labels, regions, masks, probabilities, logits");
  if (is(out, Code::Float, 32)) return given.as(ToLogits<float>{}, false);
  if (is(out, Code::Float, 16)) return given.as(ToLogits<Half>{}, false);
  refuse("logits must be float32 or float16");
}

inline void commit(const Array& sums, const Array& out, const std::string& kind, const std::string& activation,
                   const std::vector<Input>& halos, const std::vector<std::vector<index_t>>& at,
                   const Array& nonfinite, std::optional<float> above, const std::vector<std::uint16_t>& order,
                   std::uintptr_t stream) {
  check_device(sums, nonfinite, "nonfinite");
  if (halos.size() > kMostHalos)
    refuse("commit takes " + std::to_string(kMostHalos) + " halos at most: merge some first");
  if (halos.size() != at.size()) refuse("give one position per halo");
  if (!is(nonfinite, Code::Int, 32) || nonfinite.size() != 1) refuse("nonfinite must be one int32");
  finish(Commit{sums, out, halos, at, static_cast<std::int32_t*>(nonfinite.data()), stream}, kind, activation, above,
         order);
}

inline void interpolate(const Array& sums, const Array& out, const AxisTables<std::int32_t, 1>& first,
                        const AxisTables<float, 2>& weights, const std::vector<index_t>& begin,
                        const std::string& kind, const std::string& activation, std::optional<float> above,
                        const std::vector<std::uint16_t>& order, std::uintptr_t stream) {
  finish(Interpolation{sums, out, first, weights, begin, stream}, kind, activation, above, order);
}

}  // namespace
}  // namespace unet_engine
