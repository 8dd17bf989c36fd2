// The Python side of `instance_norm.hpp`: checks before anything is queued. Included by `device_module.cpp` alone.
#pragma once

#include "device_arrays.hpp"

namespace unet_engine {
namespace {

// Elements from voxel to voxel of a batch whose channels lie last. Axes of one voxel have no say.
inline index_t pitch_of(const Batch& batch, const char* name) {
  if (batch.channels > 1 && batch.stride[0] != 1) refuse(std::string(name) + " must have their channels last in memory");
  index_t pitch = 0, step = 1;
  for (int a = kAxes; a-- > 0;) {
    if (batch.size[a] > 1) {
      if (pitch == 0) pitch = batch.stride[1 + a] / step;
      if (batch.stride[1 + a] != pitch * step) refuse(std::string(name) + " must have their voxels in order");
    }
    step *= batch.size[a];
  }
  if (pitch == 0) pitch = batch.channels;
  if (pitch < batch.channels) refuse(std::string(name) + " must have their channels last in memory");
  return pitch;
}

template <typename T>
bool loads_at_once(const NormBatch<T>& batch, index_t channels) {
  constexpr index_t width = kNormWidth<T>;
  return channels % width == 0 && batch.pitch % width == 0 && batch.stride_n % width == 0 &&
         reinterpret_cast<std::uintptr_t>(batch.data) % 16 == 0;
}

using Vector = std::optional<Table<float, 1>>;

inline const float* per_channel(const Vector& vector, const Input& first, index_t channels, const char* name) {
  if (!vector.has_value()) return nullptr;
  check_device(first, *vector, name);
  if (static_cast<index_t>(vector->shape(0)) != channels) refuse(std::string(name) + " must have one value per channel");
  return vector->data();
}

// Bytes for the sums of one call, of any element type: those of the most blocks that any load makes.
inline index_t instance_norm_scratch(index_t windows, index_t channels, index_t voxels) {
  if (windows < 1 || channels < 1 || voxels < 1) refuse("windows, channels and voxels must be one at least");
  index_t most = 0;
  for (const int width : {1, 4, 8}) {
    if (channels % width != 0) continue;
    const NormGrid grid(windows, voxels, channels, width);
    most = std::max(most, 8 * grid.partials() + 4 * grid.coefficients());
  }
  return most;
}

template <typename T, int V>
NormBody<T, V> normalising(const PutBody<T, V>& given, const float* weight, const float* bias, double eps, float slope,
                           double* sums) {
  return {given, weight, bias, eps, slope, sums, reinterpret_cast<float*>(sums + given.grid.partials())};
}

// The batch, of which there is one output or two. Refuses what is no batch of windows.
inline Batch batch_for(const Input& windows, const std::vector<Array>& outputs) {
  const int axes = static_cast<int>(windows.ndim()) - 2;
  if (axes != 2 && axes != 3) refuse("windows must have 2 or 3 spatial axes");
  if (outputs.empty() || outputs.size() > kNormOutputs) refuse("give one output or two");
  const Batch batch = batch_of(windows, axes);
  const index_t voxels = batch.size[0] * batch.size[1] * batch.size[2];
  if (batch.count < 1 || batch.count > 65535 || batch.channels < 1 || voxels < 1) refuse("windows must not be empty");
  return batch;
}

// Calls `work` with the body that reads `windows` and writes `outputs`, by the widest loads that all of them allow.
template <typename Work>
void with_batches(const Input& windows, const std::vector<Array>& outputs, const Batch& batch, const Work& work) {
  const index_t voxels = batch.size[0] * batch.size[1] * batch.size[2];
  with_window_type(windows, [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    const NormBatch<const T> in{data, batch.stride_n, pitch_of(batch, "windows")};
    bool at_once = loads_at_once(in, batch.channels);
    NormBatch<T> into[kNormOutputs] = {};
    for (std::size_t o = 0; o < outputs.size(); ++o) {
      check_device(windows, outputs[o], "outputs");
      if (outputs[o].dtype() != windows.dtype()) refuse("outputs must be of the type of the windows");
      const Batch out = batch_of(outputs[o], static_cast<int>(windows.ndim()) - 2);
      if (out.count != batch.count || out.channels != batch.channels || !std::equal(out.size, out.size + kAxes, batch.size)) {
        refuse("outputs must have the shape of the windows");
      }
      into[o] = {static_cast<T*>(outputs[o].data()), out.stride_n, pitch_of(out, "outputs")};
      at_once = at_once && loads_at_once(into[o], batch.channels);
    }
    const auto with = [&](auto width) {
      constexpr int V = decltype(width)::value;
      PutBody<T, V> body{NormGrid(batch.count, voxels, batch.channels, V), in, {}, static_cast<int>(outputs.size())};
      std::copy(into, into + kNormOutputs, body.out);
      work(body);
    };
    if (at_once) return with(std::integral_constant<int, kNormWidth<T>>{});
    with(std::integral_constant<int, 1>{});
  });
}

inline void put(const Input& windows, const Array& output, std::uintptr_t stream) {
  const std::vector<Array> outputs{output};
  with_batches(windows, outputs, batch_for(windows, outputs), [&](const auto& body) {
    const nb::gil_scoped_release release;
    launch::put(launch::Queue{windows.device_id(), stream}, body);
  });
}

inline void instance_norm(const Input& windows, const std::vector<Array>& outputs, const Array& scratch,
                          const Vector& weight, const Vector& bias, double eps, float slope, std::uintptr_t stream) {
  const Batch batch = batch_for(windows, outputs);
  const index_t voxels = batch.size[0] * batch.size[1] * batch.size[2];
  if (!is(scratch, Code::UInt, 8) || scratch.ndim() != 1 || reinterpret_cast<std::uintptr_t>(scratch.data()) % 8 != 0 ||
      static_cast<index_t>(scratch.shape(0)) < instance_norm_scratch(batch.count, batch.channels, voxels)) {
    refuse("scratch must be as many bytes as instance_norm_scratch says, uint8, at a multiple of 8");
  }
  check_device(windows, scratch, "scratch");
  double* const sums = static_cast<double*>(scratch.data());
  const float* const weights = per_channel(weight, windows, batch.channels, "weight");
  const float* const biases = per_channel(bias, windows, batch.channels, "bias");
  with_batches(windows, outputs, batch, [&](const auto& given) {
    const auto body = normalising(given, weights, biases, eps, slope, sums);
    const nb::gil_scoped_release release;
    launch::instance_norm(launch::Queue{windows.device_id(), stream}, body);
  });
}

}  // namespace
}  // namespace unet_engine
