// The arithmetic of stitching, once for CPU and GPU: `rows.cpp` loops over these functions, `kernels.hpp` makes kernels
// of them, and `engine/unet_engine/stitching/reference.py` repeats them in NumPy. All three give the same bits, which
// holds only without fused multiply-add: compile with -ffp-contract=off (GCC, Clang) and --fmad=false (nvcc).
//
// Arrays are channels first in three spatial axes (two axes get a leading one of size 1). Everything is 64-bit: a
// volume has more than 2^31 voxels.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define HALO_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define HALO_FN inline __attribute__((always_inline))  // so that each clone of a row kernel is compiled for its own CPU
#else
#define HALO_FN inline
#endif

#if defined(__CUDA_ARCH__)
#define HALO_UNROLL _Pragma("unroll")
#define HALO_ROLLED _Pragma("unroll 1")
#else
#define HALO_UNROLL
#define HALO_ROLLED
#endif

namespace unet_engine {

using index_t = std::int64_t;

constexpr int kAxes = 3;

// The two 16-bit float types, as their bits.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// A strided array (channels, z, y, x); strides in elements.
template <typename T>
struct View {
  T* data;
  index_t shape[1 + kAxes];
  index_t stride[1 + kAxes];

  HALO_FN T* at(index_t k, index_t z, index_t y, index_t x) const {
    return data + k * stride[0] + z * stride[1] + y * stride[2] + x * stride[3];
  }
};

// How a window is held to the network, in bits: mirrored along z, y, x, and y and x changed before that. `Pose.bits` of
// plan/poses.py.
constexpr int kMirrorZ = 1, kMirrorY = 2, kMirrorX = 4, kSwapYX = 8;

// Where a voxel of a window that is held so lies in what the network is given, or gives: `origin + z * step[0] +
// y * step[1] + x * step[2]` elements of an array of these sizes and strides along z, y, x. Where y and x change
// places, both are of one size.
struct Posed {
  index_t origin, step[kAxes];
};

HALO_FN Posed posed(int pose, const index_t* size, const index_t* stride) {
  const bool swap = (pose & kSwapYX) != 0;
  Posed result{0, {stride[0], swap ? stride[2] : stride[1], swap ? stride[1] : stride[2]}};
  for (int a = 0; a < kAxes; ++a) {
    if ((pose >> a & 1) == 0) continue;
    result.origin += (size[a] - 1) * result.step[a];
    result.step[a] = -result.step[a];
  }
  return result;
}

HALO_FN float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

HALO_FN std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// ---- conversions: written without branches so that they vectorise; exact, or to nearest even ------------------------

template <typename T>
HALO_FN float to_float(T value) {
  return static_cast<float>(value);
}

template <>
HALO_FN float to_float(BFloat16 value) {
  return float_of_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

template <>
HALO_FN float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  float given;
  asm("cvt.f32.f16 %0, %1;" : "=f"(given) : "h"(value.bits));
  return given;
#else
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // 2^112: the difference of the two biases
  const float scaled = float_of_bits(magnitude) * float_of_bits(0x77800000u);
  const std::uint32_t top = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN keep their exponent
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  return float_of_bits(bits_of_float(scaled) | top | sign);
#endif
}

HALO_FN Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  Half made;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(made.bits) : "f"(value));
  const std::uint32_t given = bits_of_float(value);  // of a NaN the sign stays, and nothing else
  if ((given & 0x7fffffffu) > 0x7f800000u) made.bits = static_cast<std::uint16_t>((given >> 16 & 0x8000u) | 0x7e00u);
  return made;
#else
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal: move the bias, add half of the last place, and one more where the last place is odd.
  const std::uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: 0.5 has the last place of the smallest half, so the adder itself rounds.
  const std::uint32_t small = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t finite = magnitude < 0x38800000u ? small : normal;
  const std::uint32_t rounded = magnitude >= 0x477ff000u ? special : finite;  // 65520 and above round to infinity
  return Half{static_cast<std::uint16_t>(sign | rounded)};
#endif
}

HALO_FN BFloat16 to_bfloat16(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;  // adding could carry its mantissa into the sign
  return BFloat16{static_cast<std::uint16_t>(is_nan ? (bits >> 16) | 0x0040u : rounded)};
}

// A value as a network's input type: exact, or to nearest even.
template <typename T>
HALO_FN T rounded_to(float value);

template <>
HALO_FN float rounded_to<float>(float value) {
  return value;
}

template <>
HALO_FN Half rounded_to<Half>(float value) {
  return to_half(value);
}

template <>
HALO_FN BFloat16 rounded_to<BFloat16>(float value) {
  return to_bfloat16(value);
}

HALO_FN bool is_finite(float value) { return (bits_of_float(value) & 0x7f800000u) != 0x7f800000u; }

// ---- normalisation --------------------------------------------------------------------------------------------------

// The type it is computed in: float32 where it holds every value of T, otherwise float64, rounded once at the end.
template <typename T>
struct Normal {
  using type = float;
};
template <>
struct Normal<std::uint32_t> {
  using type = double;
};
template <>
struct Normal<std::int32_t> {
  using type = double;
};
template <>
struct Normal<std::uint64_t> {
  using type = double;
};
template <>
struct Normal<std::int64_t> {
  using type = double;
};
template <>
struct Normal<double> {
  using type = double;
};

template <typename T>
HALO_FN float normalise(T value, double shift, double scale) {
  if constexpr (sizeof(typename Normal<T>::type) == sizeof(double)) {
    return static_cast<float>((static_cast<double>(value) - shift) * scale);
  } else {
    return (to_float(value) - static_cast<float>(shift)) * static_cast<float>(scale);
  }
}

// What else may be asked of a channel, in raw units: values are clipped to [low, high] first, and those within
// [void_low, void_high] become 0. NaN stays NaN. Infinite bounds ask for nothing. Python gives them as a row of four
// numbers, in this order.
struct Limits {
  double low, high, void_low, void_high;
};

template <typename T>
HALO_FN float normalise(T value, double shift, double scale, const Limits& limits) {
  using F = typename Normal<T>::type;
  F raw;
  if constexpr (sizeof(F) == sizeof(double)) {
    raw = static_cast<F>(value);
  } else {
    raw = to_float(value);
  }
  const F low = static_cast<F>(limits.low), high = static_cast<F>(limits.high);
  const F void_low = static_cast<F>(limits.void_low), void_high = static_cast<F>(limits.void_high);
  // one selection after the other, and no short cuts: so it vectorises
  const F raised = raw < low ? low : raw;
  const F clipped = raised > high ? high : raised;
  const float normal = static_cast<float>((clipped - static_cast<F>(shift)) * static_cast<F>(scale));
  const float kept = raw >= void_low ? 0.0f : normal;
  return raw <= void_high ? kept : normal;
}

// ---- blending -------------------------------------------------------------------------------------------------------

HALO_FN float weight_of(float wz_wy, float wx) { return wz_wy * wx; }

// With a floor; 0 leaves every weight that is not negative as it is.
HALO_FN float weight_of(float wz_wy, float wx, float floor) {
  const float weight = wz_wy * wx;
  return weight < floor ? floor : weight;
}

// What a window adds to the sum of the weights at a voxel; a negative factor says that it does not cover the voxel.
HALO_FN float share_of(float wz, float wy, float wx, float floor) {
  return wz < 0.0f || wy < 0.0f || wx < 0.0f ? 0.0f : weight_of(weight_of(wz, wy), wx, floor);
}

HALO_FN float add_weighted(float sum, float value, float weight) { return sum + value * weight; }

// ---- activation and reduction ---------------------------------------------------------------------------------------

HALO_FN float minus_infinity() { return float_of_bits(0xff800000u); }

// False for NaN: a NaN never becomes the largest, and of equal values the first stays.
HALO_FN bool is_larger(float value, float best) { return value > best; }

// How labels follow from the largest value: the channel, or with a threshold 1 + the channel where it lies above
// `above`, else 0.
struct LabelRule {
  bool threshold;
  float above;
};

// A probability above a half. Sums of weighted halves may miss 0.5 by their rounding, and undecided voxels shall not
// depend on the windows.
constexpr float kAboveHalf = 0.5f + 9.5367431640625e-7f;  // 2^-20

// The label of a voxel whose largest value is `best` in channel `channel`.
HALO_FN std::int32_t label_of(float best, std::int32_t channel, LabelRule rule) {
  return rule.threshold ? (best > rule.above ? channel + 1 : 0) : channel;
}

// exp(x) for x <= 0 to 2 ulp, 0 below -87; from additions and products only, so that the CPU's C library does not
// matter. Source: range reduction and polynomial of `expf` in Moshier's Cephes library.
HALO_FN float exp_of_nonpositive(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds a small number to an integer
  const float shifted = x * 1.44269504f + round;
  const float n = shifted - round;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = (p * (r * r) + r) + 1.0f;
  const float power = float_of_bits((bits_of_float(shifted) + (127u - 0x4b400000u)) << 23);
  return x < -87.0f ? 0.0f : y * power;
}

HALO_FN float sigmoid(float x) {
  const float e = exp_of_nonpositive(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

HALO_FN float clip(float x) { return x < 0.0f ? 0.0f : (x > 1.0f ? 1.0f : x); }

// A probability as the output's type: in uint8 as 255ths, halves rounded up, and NaN as 0; in Half to nearest, ties to
// even.
template <typename T>
HALO_FN T quantise(float p);

template <>
HALO_FN float quantise<float>(float p) {
  return p;
}

template <>
HALO_FN Half quantise<Half>(float p) {
  return to_half(p);
}

template <>
HALO_FN std::uint8_t quantise<std::uint8_t>(float p) {
  const float scaled = p * 255.0f + 0.5f;
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(scaled > 0.0f ? scaled : 0.0f));
}

}  // namespace unet_engine
