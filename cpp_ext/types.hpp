// The types that stitching is compiled for, once for CPU and GPU, as macros that call `DO` with one type after the
// other; and what both launchers are instantiated for.
#pragma once

#include "arithmetic.hpp"

// The element types that a block may have (bool comes as uint8).
#define HALO_BLOCK_TYPES(DO) \
  DO(std::uint8_t)           \
  DO(std::int8_t)            \
  DO(std::uint16_t)          \
  DO(std::int16_t)           \
  DO(std::uint32_t)          \
  DO(std::int32_t)           \
  DO(std::uint64_t)          \
  DO(std::int64_t)           \
  DO(Half)                   \
  DO(float)                  \
  DO(double)

// The element types of a network's input and output.
#define HALO_WINDOW_TYPES(DO) \
  DO(float)                   \
  DO(Half)                    \
  DO(BFloat16)

// What a commit makes of sums; see `kernels.hpp`.
#define HALO_FINISHES(DO)         \
  DO(ToLabel<std::uint8_t>)       \
  DO(ToLabel<std::uint16_t>)      \
  DO(ToRegions<std::uint8_t>)     \
  DO(ToRegions<std::uint16_t>)    \
  DO(ToMask<std::uint8_t>)        \
  DO(ToProbability<std::uint8_t>) \
  DO(ToProbability<Half>)         \
  DO(ToProbability<float>)        \
  DO(ToSoftmax<std::uint8_t>)     \
  DO(ToSoftmax<Half>)             \
  DO(ToSoftmax<float>)            \
  DO(ToLogits<float>)             \
  DO(ToLogits<Half>)

// The templates of `launch.hpp` for all of these. At the end of the file that implements them, in their namespace.
#define HALO_INSTANTIATE_GATHER(T)                                           \
  template void gather<T, float>(const Queue&, const GatherBody<T, float>&); \
  template void gather<T, Half>(const Queue&, const GatherBody<T, Half>&);   \
  template void gather<T, BFloat16>(const Queue&, const GatherBody<T, BFloat16>&);
#define HALO_INSTANTIATE_RESAMPLE(T) template void resample<T>(const Queue&, const ResampleBody<T>&);
#define HALO_INSTANTIATE_ADD(T) template void add<T>(const Queue&, const AddBody<T>&);
#define HALO_INSTANTIATE_COMMIT(F)                          \
  template void commit<F>(const Queue&, const CommitBody<F>&); \
  template void interpolate<F>(const Queue&, const InterpolateBody<F>&);
#define HALO_INSTANTIATE_NORM(T)                                          \
  template void put<T, 1>(const Queue&, const PutBody<T, 1>&);            \
  template void put<T, kNormWidth<T>>(const Queue&, const PutBody<T, kNormWidth<T>>&); \
  template void instance_norm<T, 1>(const Queue&, const NormBody<T, 1>&); \
  template void instance_norm<T, kNormWidth<T>>(const Queue&, const NormBody<T, kNormWidth<T>>&);
#define HALO_INSTANTIATE_LAUNCHERS          \
  HALO_BLOCK_TYPES(HALO_INSTANTIATE_GATHER) \
  HALO_BLOCK_TYPES(HALO_INSTANTIATE_RESAMPLE) \
  HALO_WINDOW_TYPES(HALO_INSTANTIATE_ADD)   \
  HALO_WINDOW_TYPES(HALO_INSTANTIATE_NORM)  \
  HALO_FINISHES(HALO_INSTANTIATE_COMMIT)
