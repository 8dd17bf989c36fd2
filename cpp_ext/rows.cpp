#include "rows.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>

// target_clones needs ifunc (ELF, glibc) and a compiler that knows the levels of x86-64.
#if defined(__x86_64__) && defined(__ELF__) && defined(__gnu_linux__) && \
    ((defined(__clang__) && __clang_major__ >= 18) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define HALO_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HALO_CLONES
#endif

#if defined(_MSC_VER)
#define HALO_RESTRICT __restrict
#else
#define HALO_RESTRICT __restrict__
#endif

namespace unet_engine {

namespace {

// -0.0 equals 0.0 and NaN equals nothing, in the 16-bit type too.
// The result is of the width of an integer T, so that as many fit into a vector.
template <typename T>
HALO_FN auto differ(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<std::make_unsigned_t<T>>(a ^ b);
  } else if constexpr (std::is_same_v<T, Half>) {
    return to_float(a) == to_float(b) ? 0u : 1u;
  } else {
    return a == b ? 0u : 1u;
  }
}

template <typename T>
HALO_FN void label_strip(T* HALO_RESTRICT out, const float* HALO_RESTRICT sums, index_t stride, index_t channels,
                         index_t n, LabelRule rule) {
  float best[kStrip];
  std::int32_t channel[kStrip];
  std::fill_n(best, n, minus_infinity());
  std::fill_n(channel, n, 0);
  for (index_t k = 0; k < channels; ++k) {
    const float* HALO_RESTRICT row = sums + k * stride;
    for (index_t x = 0; x < n; ++x) {
      const bool larger = is_larger(row[x], best[x]);
      best[x] = larger ? row[x] : best[x];
      channel[x] = larger ? static_cast<std::int32_t>(k) : channel[x];
    }
  }
  for (index_t x = 0; x < n; ++x) out[x] = static_cast<T>(label_of(best[x], channel[x], rule));
}

template <typename T>
HALO_FN void softmax_strip(T* HALO_RESTRICT out, index_t out_stride, const float* HALO_RESTRICT sums, index_t stride,
                           index_t channels, index_t n, float* HALO_RESTRICT e) {
  float best[kStrip];
  float total[kStrip];
  std::fill_n(best, n, minus_infinity());
  for (index_t k = 0; k < channels; ++k) {
    const float* HALO_RESTRICT row = sums + k * stride;
    for (index_t x = 0; x < n; ++x) best[x] = is_larger(row[x], best[x]) ? row[x] : best[x];
  }
  for (index_t x = 0; x < n; ++x) total[x] = e[x] = exp_of_nonpositive(sums[x] - best[x]);
  for (index_t k = 1; k < channels; ++k) {
    const float* HALO_RESTRICT row = sums + k * stride;
    float* HALO_RESTRICT e_row = e + k * n;
    for (index_t x = 0; x < n; ++x) {
      e_row[x] = exp_of_nonpositive(row[x] - best[x]);
      total[x] += e_row[x];
    }
  }
  for (index_t k = 0; k < channels; ++k) {
    const float* HALO_RESTRICT e_row = e + k * n;
    T* HALO_RESTRICT out_row = out + k * out_stride;
    for (index_t x = 0; x < n; ++x) out_row[x] = quantise<T>(e_row[x] / total[x]);
  }
}

}  // namespace

#define HALO_DEFINE(T)                                                                                           \
  HALO_CLONES void normalise_row(float* HALO_RESTRICT out, const T* HALO_RESTRICT in, index_t n, double shift,   \
                                 double scale) noexcept {                                                        \
    for (index_t x = 0; x < n; ++x) out[x] = normalise(in[x], shift, scale);                                     \
  }                                                                                                              \
  HALO_CLONES void normalise_row(float* HALO_RESTRICT out, const T* HALO_RESTRICT in, index_t n, double shift,   \
                                 double scale, const Limits& limits) noexcept {                                  \
    const Limits own = limits; /* nothing that is written may be it */                                           \
    for (index_t x = 0; x < n; ++x) out[x] = normalise(in[x], shift, scale, own);                                \
  }                                                                                                              \
  HALO_CLONES bool row_equals(const T* in, index_t n, T value) noexcept {                                        \
    for (index_t x = 0; x < n; x += kStrip) {                                                                    \
      const index_t end = std::min(n, x + kStrip);                                                               \
      decltype(differ(value, value)) other = 0;                                                                  \
      for (index_t i = x; i < end; ++i) other |= differ(in[i], value); /* no branch: vectorises */               \
      if (other != 0) return false;                                                                              \
    }                                                                                                            \
    return true;                                                                                                 \
  }
HALO_BLOCK_TYPES(HALO_DEFINE)
#undef HALO_DEFINE

namespace {

// Rows of a window that is turned lie as columns in memory: they are read along those, a tile at a time, by way of the
// first-level cache.
template <typename T>
HALO_FN void add_columns(float* HALO_RESTRICT sums, index_t sums_stride, const T* HALO_RESTRICT in, index_t in_stride,
                         index_t in_step, float wz, const float* HALO_RESTRICT wy, const float* HALO_RESTRICT wx,
                         float floor, index_t rows, index_t n) {
  constexpr index_t kSide = 32;
  float tile[kSide][kSide];
  for (index_t y0 = 0; y0 < rows; y0 += kSide) {
    const index_t height = std::min(kSide, rows - y0);
    for (index_t x0 = 0; x0 < n; x0 += kSide) {
      const index_t width = std::min(kSide, n - x0);
      for (index_t x = 0; x < width; ++x) {
        const T* HALO_RESTRICT column = in + y0 * in_stride + (x0 + x) * in_step;
        for (index_t y = 0; y < height; ++y) tile[y][x] = to_float(column[y * in_stride]);
      }
      for (index_t y = 0; y < height; ++y) {
        const float w = weight_of(wz, wy[y0 + y]);
        float* HALO_RESTRICT row = sums + (y0 + y) * sums_stride + x0;
        for (index_t x = 0; x < width; ++x) row[x] = add_weighted(row[x], tile[y][x], weight_of(w, wx[x0 + x], floor));
      }
    }
  }
}

}  // namespace

#define HALO_DEFINE(T)                                                                                           \
  HALO_CLONES void add_rows(float* HALO_RESTRICT sums, index_t sums_stride, const T* HALO_RESTRICT in,           \
                            index_t in_stride, index_t in_step, float wz, const float* HALO_RESTRICT wy,         \
                            const float* HALO_RESTRICT wx, float floor, index_t rows, index_t n) noexcept {      \
    if (in_step != 1 && in_step != -1) {                                                                         \
      return add_columns(sums, sums_stride, in, in_stride, in_step, wz, wy, wx, floor, rows, n);                 \
    }                                                                                                            \
    for (index_t y = 0; y < rows; ++y, sums += sums_stride, in += in_stride) {                                   \
      const float w = weight_of(wz, wy[y]);                                                                      \
      if (in_step == 1) {                                                                                        \
        for (index_t x = 0; x < n; ++x)                                                                          \
          sums[x] = add_weighted(sums[x], to_float(in[x]), weight_of(w, wx[x], floor));                          \
      } else {                                                                                                   \
        for (index_t x = 0; x < n; ++x)                                                                          \
          sums[x] = add_weighted(sums[x], to_float(in[-x]), weight_of(w, wx[x], floor));                         \
      }                                                                                                          \
    }                                                                                                            \
  }
HALO_WINDOW_TYPES(HALO_DEFINE)
#undef HALO_DEFINE

HALO_CLONES void add_constant_rows(float* HALO_RESTRICT sums, index_t sums_stride, float value, float wz,
                                   const float* HALO_RESTRICT wy, const float* HALO_RESTRICT wx, float floor, index_t rows,
                                   index_t n) noexcept {
  for (index_t y = 0; y < rows; ++y, sums += sums_stride) {
    const float w = weight_of(wz, wy[y]);
    for (index_t x = 0; x < n; ++x) sums[x] = add_weighted(sums[x], value, weight_of(w, wx[x], floor));
  }
}

HALO_CLONES void share_row(float* HALO_RESTRICT total, float wz, float wy, const float* HALO_RESTRICT wx, float floor,
                           index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) total[x] += share_of(wz, wy, wx[x], floor);
}

HALO_CLONES void divide_row(float* HALO_RESTRICT sums, const float* HALO_RESTRICT total, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) sums[x] = sums[x] / total[x];
}

HALO_CLONES void merge_row(float* HALO_RESTRICT sums, const float* HALO_RESTRICT in, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) sums[x] += in[x];
}

#define HALO_DEFINE(T)                                                                                             \
  HALO_CLONES void label_row(T* out, const float* sums, index_t stride, index_t channels, index_t n,               \
                             LabelRule rule) noexcept {                                                            \
    for (index_t x = 0; x < n; x += kStrip)                                                                        \
      label_strip(out + x, sums + x, stride, channels, std::min(kStrip, n - x), rule);                             \
  }
HALO_DEFINE(std::uint8_t)
HALO_DEFINE(std::uint16_t)
#undef HALO_DEFINE

#define HALO_DEFINE(T)                                                                                             \
  HALO_CLONES void softmax_row(T* out, index_t out_stride, const float* sums, index_t stride, index_t channels,    \
                               index_t n, float* scratch) noexcept {                                               \
    softmax_strip(out, out_stride, sums, stride, channels, n, scratch);                                            \
  }                                                                                                                \
  HALO_CLONES void sigmoid_row(T* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t n) noexcept {          \
    for (index_t x = 0; x < n; ++x) out[x] = quantise<T>(sigmoid(in[x]));                                          \
  }                                                                                                                \
  HALO_CLONES void clip_row(T* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t n) noexcept {             \
    for (index_t x = 0; x < n; ++x) out[x] = quantise<T>(clip(in[x]));                                             \
  }
HALO_DEFINE(std::uint8_t)
HALO_DEFINE(Half)
HALO_DEFINE(float)
#undef HALO_DEFINE

namespace {

// Sixteen floats, as many as the widest register holds, or one. Sums of them stay in registers; of an array the
// compiler would unroll the loop over its elements first.
struct Sixteen {
  static constexpr index_t kWidth = 16;
#if defined(__GNUC__)
  typedef float Floats __attribute__((vector_size(64)));
  Floats values;
  HALO_FN void times(float w) { values = values * w; }
  HALO_FN void add(const Sixteen& other) { values = values + other.values; }
#else
  float values[16];
  HALO_FN void times(float w) {
    for (float& value : values) value *= w;
  }
  HALO_FN void add(const Sixteen& other) {
    for (int i = 0; i < 16; ++i) values[i] += other.values[i];
  }
#endif
};

struct One {
  static constexpr index_t kWidth = 1;
  float values;
  HALO_FN void times(float w) { values *= w; }
  HALO_FN void add(const One& other) { values += other.values; }
};

template <typename T>
HALO_FN T weighted(const float* in, float weight) {
  T found;
  std::memcpy(&found, in, sizeof found);
  found.times(weight);
  return found;
}

// out[x] = sum over t of in[t * stride + x] * weights[t] for N times as many x as T holds.
template <typename T, int N>
HALO_FN void combine_strip(float* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t stride,
                           const float* HALO_RESTRICT weights, index_t taps) {
  T sum[N];
  for (int i = 0; i < N; ++i) sum[i] = weighted<T>(in + i * T::kWidth, weights[0]);
  for (index_t t = 1; t < taps; ++t) {
    for (int i = 0; i < N; ++i) sum[i].add(weighted<T>(in + t * stride + i * T::kWidth, weights[t]));
  }
  std::memcpy(out, sum, sizeof sum);
}

}  // namespace

HALO_CLONES void combine_rows(float* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t stride,
                              const float* HALO_RESTRICT weights, index_t taps, index_t n) noexcept {
  index_t x = 0;
  for (; x + 64 <= n; x += 64) combine_strip<Sixteen, 4>(out + x, in + x, stride, weights, taps);
  for (; x + 16 <= n; x += 16) combine_strip<Sixteen, 1>(out + x, in + x, stride, weights, taps);
  for (; x < n; ++x) combine_strip<One, 1>(out + x, in + x, stride, weights, taps);
}

HALO_CLONES void linear_row(float* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t stride,
                            const float* HALO_RESTRICT weights, index_t taps, float bias, index_t n) noexcept {
  index_t x = 0;
  for (; x + 64 <= n; x += 64) combine_strip<Sixteen, 4>(out + x, in + x, stride, weights, taps);
  for (; x + 16 <= n; x += 16) combine_strip<Sixteen, 1>(out + x, in + x, stride, weights, taps);
  for (; x < n; ++x) combine_strip<One, 1>(out + x, in + x, stride, weights, taps);
  for (x = 0; x < n; ++x) out[x] += bias;
}

HALO_CLONES void combine_lanes(float* HALO_RESTRICT out, const float* HALO_RESTRICT in,
                               const std::int64_t* HALO_RESTRICT first, const float* HALO_RESTRICT weights,
                               index_t taps, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) {
    combine_strip<Sixteen, 1>(out + 16 * x, in + 16 * first[x], 16, weights + x * taps, taps);
  }
}

HALO_CLONES void to_lane(float* HALO_RESTRICT lane, const float* HALO_RESTRICT row, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) lane[16 * x] = row[x];
}

HALO_CLONES void from_lane(float* HALO_RESTRICT row, const float* HALO_RESTRICT lane, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) row[x] = lane[16 * x];
}

void cast_row(float* out, const float* in, index_t n) noexcept { std::copy_n(in, n, out); }

HALO_CLONES void cast_row(Half* HALO_RESTRICT out, const float* HALO_RESTRICT in, index_t n) noexcept {
  for (index_t x = 0; x < n; ++x) out[x] = to_half(in[x]);
}

}  // namespace unet_engine
