// The launchers of `halo.cu`, free of CUDA's headers so that `halo_cuda.cpp` is compiled by the host's compiler alone.
// Pointers are device pointers unless named host; every function returns once the work is queued on the stream and throws
// std::runtime_error with the kernel's name where it could not be.
#pragma once

#include <cstdint>
#include <vector>

#include "halo.hpp"

namespace unet_engine::cuda {

// Where the work runs: a device and one of its streams (cudaStream_t as an integer, 0 the default stream).
struct Queue {
  int device;
  std::uintptr_t stream;
};

// One window of a batch: its origin in the sums, and the range [lo, hi) to add, in window coordinates.
struct Placement {
  index_t at[kAxes];
  index_t lo[kAxes];
  index_t hi[kAxes];
};

// A batch of windows (n, channels, z, y, x); strides in elements, so any memory order will do.
template <typename T>
struct Batch {
  const T* data;
  index_t count;
  index_t stride_n;
  index_t size[kAxes];
  index_t stride[1 + kAxes];
};

// sums[k, at + i] += window[n, k, i] * ((wz * wy) * wx) for all windows n covering the voxel, in the order of the batch.
// `host_weights` holds for each window its weights on z, then y, then x. Instantiated for float, Half, BFloat16.
template <typename T>
void add_batch(const Queue& queue, const View<float>& sums, const Batch<T>& windows, const std::vector<Placement>& host_places,
               const std::vector<float>& host_weights);

// sums += halo, of the same shape (`sums` is the part of the sums that the halo covers).
void merge(const Queue& queue, const View<float>& sums, const View<const float>& halo);

// Instantiated for uint8 and uint16; `out` has one channel.
template <typename T>
void labels(const Queue& queue, const View<const float>& sums, const View<T>& out, bool threshold);

// Instantiated for uint8 and float.
template <typename T>
void probabilities(const Queue& queue, const View<const float>& sums, const View<T>& out, Activation activation);

}  // namespace unet_engine::cuda
