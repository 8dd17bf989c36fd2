// The inner loops of `host_module.cpp`, over contiguous rows. Compiled several times, for AVX-512, AVX2 and any x86-64,
// and chosen when the module is loaded (elsewhere: compiled once). The results are the same bits, see `arithmetic.hpp`.
#pragma once

#include "types.hpp"

namespace unet_engine {

// Voxels of a row whose intermediate values stay in the first-level cache.
constexpr index_t kStrip = 1024;

// out[i] = normalise(in[i]), without limits and with;   whether all in[i] == value
#define HALO_DECLARE(T)                                                                                              \
  void normalise_row(float* out, const T* in, index_t n, double shift, double scale) noexcept;                       \
  void normalise_row(float* out, const T* in, index_t n, double shift, double scale, const Limits& limits) noexcept; \
  bool row_equals(const T* in, index_t n, T value) noexcept;
HALO_BLOCK_TYPES(HALO_DECLARE)
#undef HALO_DECLARE

// sums[y][x] += in[y][x] * max((wz * wy[y]) * wx[x], floor) on `rows` rows of length n; `in_step` lies between the
// elements of a row of `in`, and is -1 where the window is mirrored along it
#define HALO_DECLARE(T)                                                                                            \
  void add_rows(float* sums, index_t sums_stride, const T* in, index_t in_stride, index_t in_step, float wz, \
                const float* wy, const float* wx, float floor, index_t rows, index_t n) noexcept;
HALO_WINDOW_TYPES(HALO_DECLARE)
#undef HALO_DECLARE

// sums[y][x] += value * max((wz * wy[y]) * wx[x], floor)
void add_constant_rows(float* sums, index_t sums_stride, float value, float wz, const float* wy, const float* wx, float floor,
                       index_t rows, index_t n) noexcept;

// total[i] += share_of(wz, wy, wx[i], floor)
void share_row(float* total, float wz, float wy, const float* wx, float floor, index_t n) noexcept;

// sums[i] /= total[i]
void divide_row(float* sums, const float* total, index_t n) noexcept;

// sums[i] += in[i]
void merge_row(float* sums, const float* in, index_t n) noexcept;

// The labels of one row of voxels; `stride` lies between the channels of `sums`.
void label_row(std::uint8_t* out, const float* sums, index_t stride, index_t channels, index_t n,
               LabelRule rule) noexcept;
void label_row(std::uint16_t* out, const float* sums, index_t stride, index_t channels, index_t n,
               LabelRule rule) noexcept;

// out[k][i] = quantise(softmax over k) for n <= kStrip voxels, with room for `channels * n` floats in `scratch`.
void softmax_row(std::uint8_t* out, index_t out_stride, const float* sums, index_t stride, index_t channels, index_t n,
                 float* scratch) noexcept;
void softmax_row(Half* out, index_t out_stride, const float* sums, index_t stride, index_t channels, index_t n,
                 float* scratch) noexcept;
void softmax_row(float* out, index_t out_stride, const float* sums, index_t stride, index_t channels, index_t n,
                 float* scratch) noexcept;

// out[i] = quantise(sigmoid(in[i])) and out[i] = quantise(clip(in[i]))
void sigmoid_row(std::uint8_t* out, const float* in, index_t n) noexcept;
void sigmoid_row(Half* out, const float* in, index_t n) noexcept;
void sigmoid_row(float* out, const float* in, index_t n) noexcept;
void clip_row(std::uint8_t* out, const float* in, index_t n) noexcept;
void clip_row(Half* out, const float* in, index_t n) noexcept;
void clip_row(float* out, const float* in, index_t n) noexcept;

// out[x] = sum over t of in[t * stride + x] * weights[t], in this order
void combine_rows(float* out, const float* in, index_t stride, const float* weights, index_t taps, index_t n) noexcept;

// out[x] = bias + sum over t of in[t * stride + x] * weights[t], in this order, the bias last
void linear_row(float* out, const float* in, index_t stride, const float* weights, index_t taps, float bias,
                index_t n) noexcept;

// Sixteen rows side by side, voxel x of row r at 16 * x + r. For each row:
// out[x] = sum over t of in[first[x] + t] * weights[x][t]
void combine_lanes(float* out, const float* in, const std::int64_t* first, const float* weights, index_t taps,
                   index_t n) noexcept;

// One of such rows, from and to where its voxels lie one after the other
void to_lane(float* lane, const float* row, index_t n) noexcept;
void from_lane(float* row, const float* lane, index_t n) noexcept;

// out[i] = in[i], in the output's type
void cast_row(float* out, const float* in, index_t n) noexcept;
void cast_row(Half* out, const float* in, index_t n) noexcept;

}  // namespace unet_engine
