// The launchers of the kernels in `kernels.hpp`, free of CUDA's headers so that `device_module.cpp` is compiled by the
// host's compiler alone. Implemented twice: `launch_cuda.cu` queues them on a stream of a GPU, `launch_loop.cpp` runs
// them in loops on the CPU, for tests. Every function throws std::runtime_error with the kernel's name where it could
// not be queued.
#pragma once

#include <cstdint>

#include "instance_norm.hpp"
#include "interpolate_kernels.hpp"
#include "kernels.hpp"
#include "resample_kernels.hpp"
#include "types.hpp"

namespace unet_engine::launch {

// Where the work runs: a device and one of its streams (cudaStream_t as an integer, 0 the default stream).
struct Queue {
  int device;
  std::uintptr_t stream;
};

template <typename T, typename U>
void gather(const Queue& queue, const GatherBody<T, U>& body);

template <typename T>
void add(const Queue& queue, const AddBody<T>& body);

void divide(const Queue& queue, const DivideBody& body);

void pack(const Queue& queue, const PackBody& body);

void merge(const Queue& queue, const MergeBody& body);

template <typename Finish>
void commit(const Queue& queue, const CommitBody<Finish>& body);

template <typename Finish>
void interpolate(const Queue& queue, const InterpolateBody<Finish>& body);

template <typename T>
void resample(const Queue& queue, const ResampleBody<T>& body);

void clip(const Queue& queue, const ClipBody& body);

template <typename T, int V>
void put(const Queue& queue, const PutBody<T, V>& body);

// All passes of an InstanceNorm, one after the other.
template <typename T, int V>
void instance_norm(const Queue& queue, const NormBody<T, V>& body);

// Of one `add`: their numbers must fit into shared memory. Python is told as MOST_ENTRIES.
constexpr index_t kMostEntries = 8192;
constexpr int kTileY = 4, kTileZ = 2;  // voxels of a tile; along x it has kLanes * kPerThread

}  // namespace unet_engine::launch
