// The launchers of the kernels in `kernels.hpp`, free of CUDA's headers so that `halo_device.cpp` is compiled by the host's compiler alone.
// Implemented twice: `halo.cu` queues them on a stream of a GPU, `halo_loop.cpp` runs them in loops on the CPU, for tests. Every function
// throws std::runtime_error with the kernel's name where it could not be queued.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace unet_engine::launch {

// Where the work runs: a device and one of its streams (cudaStream_t as an integer, 0 the default stream).
struct Queue {
  int device;
  std::uintptr_t stream;
};

// The element types of a block, of a window; and what a commit makes of sums.
#define LAUNCH_BLOCK_TYPES(DO) \
  DO(std::uint8_t)             \
  DO(std::int8_t)              \
  DO(std::uint16_t)            \
  DO(std::int16_t)             \
  DO(std::uint32_t)            \
  DO(std::int32_t)             \
  DO(std::uint64_t)            \
  DO(std::int64_t)             \
  DO(Half)                     \
  DO(float)                    \
  DO(double)

#define LAUNCH_WINDOW_TYPES(DO) \
  DO(float)                     \
  DO(Half)                      \
  DO(BFloat16)

#define LAUNCH_FINISHES(DO)    \
  DO(ToLabel<std::uint8_t>)    \
  DO(ToLabel<std::uint16_t>)   \
  DO(ToProbability<std::uint8_t>) \
  DO(ToProbability<float>)     \
  DO(ToSoftmax<std::uint8_t>)  \
  DO(ToSoftmax<float>)         \
  DO(ToLogits<float>)          \
  DO(ToLogits<Half>)

template <typename T, typename U>
void gather(const Queue& queue, const GatherBody<T, U>& body);

template <typename T>
void add(const Queue& queue, const AddBody<T>& body);

void pack(const Queue& queue, const PackBody& body);

void merge(const Queue& queue, const MergeBody& body);

template <typename Finish>
void commit(const Queue& queue, const CommitBody<Finish>& body);

constexpr index_t kMostEntries = 8192;  // of one `add`: their numbers must fit into shared memory
constexpr int kTileY = 4, kTileZ = 2;   // voxels of a tile; along x it has kLanes * kPerThread

}  // namespace unet_engine::launch
