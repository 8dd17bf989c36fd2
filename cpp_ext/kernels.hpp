// The bodies of the GPU's kernels: what one thread does. `launch_cuda.cu` launches them over a grid, `launch_loop.cpp`
// runs the very same code in loops on the CPU, where the tests compare it with
// `engine/unet_engine/stitching/reference.py`.
//
// All are in gather form: a thread owns what it writes, so there are no atomics and no order but the one written here.
//
// Two shapes of body:
//   row bodies    rows() rows of width() elements; `row(r)` is computed once per row and thread, `load` and `store`
//                 once per element. They are apart so that a thread can have several loads under way before its first
//                 store.
//   AddBody       tiles of voxels, each with the list of windows that meet it.
//
// Where rows begin at a multiple of four voxels, a thread of `AddBody` has four that lie together, read in one go; else
// four that lie a warp apart.
#pragma once

#include "arithmetic.hpp"

namespace unet_engine {

constexpr int kLanes = 32;  // threads of a row or tile along x: a warp
// Elements along x that one thread handles, kLanes apart: so many loads are under way at once.
constexpr int kPerThread = 4;
constexpr int kMostHalos = 32;  // that one commit merges; Python is told as MOST_HALOS
constexpr int kMostRegions = 64;  // that one commit numbers; Python is told as MOST_REGIONS

// Where windows lie along one axis of a block: origin in the sums (may be negative), and the range to add, in window
// coordinates.
struct Span {
  index_t at, lo, hi;
};

// One window of a block: which span it takes on each axis, and its row in the batch; -1: it was skipped and stands for
// a constant.
struct Entry {
  std::int32_t span[kAxes];
  std::int32_t row;
};

struct Point {
  index_t z, y;
};

// Row `r` of a box, as plane and line; in 32 bits where that is enough, since a division of 64 costs four times as
// much.
HALO_FN Point point_of(index_t r, index_t lines) {
  if (r <= 0x7fffffff && lines <= 0x7fffffff) {
    const std::uint32_t a = static_cast<std::uint32_t>(r), b = static_cast<std::uint32_t>(lines);
    return {a / b, a % b};
  }
  return {r / lines, r % lines};
}

// ---- gather ---------------------------------------------------------------------------------------------------------

// Cuts windows out of a block's raw voxels and normalises them: out[n, c, z, y, x] of the n-th entry of `order`.
template <typename T, typename U>
struct GatherBody {
  View<const T> raw;
  U* out;
  index_t stride_n;
  index_t stride[1 + kAxes];  // of out, elements: any memory order
  index_t size[kAxes];        // of a window
  // Per axis, for each span the position inside the raw block of every voxel of the window; -1 takes `fill`.
  const std::int32_t* positions[kAxes];
  const Entry* entries;
  const std::int32_t* order;
  index_t count;
  const std::int32_t* poses;  // per entry; null: all upright
  const double* scale;  // per channel
  const double* shift;
  const Limits* limits;  // per channel; null: none
  float fill;

  // Along a row of the network's input, one axis of the raw block runs: x, or y where they change places.
  struct Row {
    const T* from;  // null: outside
    U* to;
    const std::int32_t* along;  // positions on the axis that runs, `step` apart
    index_t step, stride;       // and what lies between two voxels there
    double scale, shift;
    const Limits* limits;
  };

  HALO_FN index_t rows() const { return count * raw.shape[0] * size[0] * size[1]; }
  HALO_FN index_t width() const { return size[2]; }

  HALO_FN Row row(index_t r) const {
    const Point line = point_of(r, size[1]);
    const Point plane = point_of(line.z, size[0]);
    const Point image = point_of(plane.z, raw.shape[0]);
    const index_t n = image.z, c = image.y, z = plane.y, y = line.y;
    const std::int32_t number = order[n];
    const Entry entry = entries[number];
    const int pose = poses == nullptr ? 0 : poses[number];
    const int fixed = pose & kSwapYX ? 2 : 1, running = pose & kSwapYX ? 1 : 2;
    const index_t from_z = positions[0][entry.span[0] * size[0] + mirrored(pose, 0, z)];
    const index_t at = positions[fixed][entry.span[fixed] * size[fixed] + mirrored(pose, fixed, y)];
    const bool outside = from_z < 0 || at < 0;
    const T* from = outside ? nullptr : raw.at(c, from_z, 0, 0) + at * raw.stride[1 + fixed];
    U* to = out + n * stride_n + c * stride[0] + z * stride[1] + y * stride[2];
    const std::int32_t* along = positions[running] + entry.span[running] * size[running] + mirrored(pose, running, 0);
    return {from, to, along, pose >> running & 1 ? -1 : 1, raw.stride[1 + running], scale[c], shift[c],
            limits == nullptr ? nullptr : limits + c};
  }

  // Where voxel `i` along axis `a` lies in the window as it was cut.
  HALO_FN index_t mirrored(int pose, int a, index_t i) const { return pose >> a & 1 ? size[a] - 1 - i : i; }

  HALO_FN U load(const Row& row, index_t x) const {
    const index_t position = row.along[x * row.step];
    if (row.from == nullptr || position < 0) return rounded_to<U>(fill);
    const T value = row.from[position * row.stride];
    if (row.limits == nullptr) return rounded_to<U>(normalise(value, row.shift, row.scale));
    return rounded_to<U>(normalise(value, row.shift, row.scale, *row.limits));
  }

  HALO_FN void store(const Row& row, index_t x, U value) const { row.to[x * stride[3]] = value; }
};

// ---- add ------------------------------------------------------------------------------------------------------------

// kPerThread elements next to one another, that are read and written at once.
template <typename T>
struct alignas(kPerThread * sizeof(T)) Four {
  T of[kPerThread];
};

template <typename T>
HALO_FN bool is_aligned(const T* data) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Four<T>) == 0;
}

// How the kPerThread voxels of a thread lie along x. Apart: kLanes from one to the next, so that a warp reads
// neighbours wherever rows begin. `left`: voxels from the first to the end of what is added to.
struct Apart {
  static constexpr index_t kStep = kLanes;
  HALO_FN static index_t first(index_t lane) { return lane; }
  HALO_FN static void load(const float* from, index_t stride, index_t left, float (&to)[kPerThread]) {
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      if (j * kStep < left) to[j] = from[j * kStep * stride];
    }
  }
  HALO_FN static void store(float* to, index_t stride, index_t left, const float (&from)[kPerThread]) {
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      if (j * kStep < left) to[j * kStep * stride] = from[j];
    }
  }
};

// Together: next to one another, in rows that all begin at a multiple of kPerThread. The last may lie beyond what is
// added to, but not beyond the row: no other thread has them.
struct Together {
  static constexpr index_t kStep = 1;
  HALO_FN static index_t first(index_t lane) { return lane * kPerThread; }
  HALO_FN static void load(const float* from, index_t, index_t, float (&to)[kPerThread]) {
    const Four<float> read = *reinterpret_cast<const Four<float>*>(from);
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) to[j] = read.of[j];
  }
  HALO_FN static void store(float* to, index_t, index_t, const float (&from)[kPerThread]) {
    Four<float> written;
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) written.of[j] = from[j];
    *reinterpret_cast<Four<float>*>(to) = written;
  }
};

// sums[k, at + i] += window[n, k, i] * max((wz * wy) * wx, floor) for all windows that cover a voxel, in the order of
// the entries.
template <typename T>
struct AddBody {
  static constexpr int kChannels = 4;  // that share one look at the windows and one product of weights

  View<float> sums;
  const T* data;
  index_t stride_n;
  index_t stride[1 + kAxes];
  index_t size[kAxes];
  const Span* spans[kAxes];
  const float* weights[kAxes];  // (spans, size)
  const Entry* entries;
  const std::int32_t* poses;  // per entry; null: all upright
  const float* shares;        // per entry, of all that is added for its window; null: 1
  index_t first, stop;        // the entries of this batch
  const float* constant;  // per channel, of a window that was skipped
  index_t lo[kAxes], hi[kAxes];  // the box of the sums that they may meet
  float floor;

  HALO_FN index_t count() const { return stop - first; }

  // Whether all rows begin at a multiple of kPerThread voxels, so that a thread may have its voxels `Together`.
  HALO_FN bool has_aligned_rows() const {
    bool result = sums.stride[3] == 1 && stride[3] == 1 && stride_n % kPerThread == 0 && sums.shape[3] % kPerThread == 0 &&
                  size[2] % kPerThread == 0 && is_aligned(sums.data) && is_aligned(data) && is_aligned(weights[2]);
    for (int a = 0; a < kAxes; ++a) {
      result = result && sums.stride[a] % kPerThread == 0 && stride[a] % kPerThread == 0;
    }
    return result;
  }

  // The same for a box that begins at such a multiple.
  HALO_FN AddBody from_aligned() const {
    AddBody body = *this;
    body.lo[2] -= body.lo[2] % kPerThread;
    return body;
  }

  // Whether entry `n` of the batch adds anything to the box [from, to) of the sums.
  HALO_FN bool meets(index_t n, const index_t* from, const index_t* to) const {
    const Entry entry = entries[first + n];
    bool result = true;
    for (int a = 0; a < kAxes; ++a) {
      const Span span = spans[a][entry.span[a]];
      result = result && span.lo < span.hi && span.at + span.lo < to[a] && from[a] < span.at + span.hi;
    }
    return result;
  }

  // Adds the listed windows to the voxels (z, y, x + j * Way::kStep).
  template <typename Way>
  HALO_FN void add(const int* list, int listed, index_t z, index_t y, index_t x) const {
    for (index_t k = 0; k < sums.shape[0]; k += kChannels) {
      const int channels = static_cast<int>(sums.shape[0] - k < kChannels ? sums.shape[0] - k : kChannels);
      float* const base = sums.at(k, z, y, x);
      float sum[kChannels][kPerThread] = {};
      HALO_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        if (c < channels) Way::load(base + c * sums.stride[0], sums.stride[3], hi[2] - x, sum[c]);
      }
      for (int i = 0; i < listed; ++i) add_window<Way>(list[i], k, channels, z, y, x, sum);
      HALO_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        if (c < channels) Way::store(base + c * sums.stride[0], sums.stride[3], hi[2] - x, sum[c]);
      }
    }
  }

  template <typename Way>
  HALO_FN void add_window(index_t n, index_t k, int channels, index_t z, index_t y, index_t x,
                          float (&sum)[kChannels][kPerThread]) const {
    const Entry entry = entries[first + n];
    const Span sz = spans[0][entry.span[0]], sy = spans[1][entry.span[1]], sx = spans[2][entry.span[2]];
    const index_t wz = z - sz.at, wy = y - sy.at;
    if (wz < sz.lo || wz >= sz.hi || wy < sy.lo || wy >= sy.hi) return;
    const float weight_z = weights[0][entry.span[0] * size[0] + wz];
    const float wz_wy = weight_of(shares == nullptr ? weight_z : shares[first + n] * weight_z,
                                  weights[1][entry.span[1] * size[1] + wy]);
    const float least = shares == nullptr ? floor : shares[first + n] * floor;
    const float* const weight_x = weights[2] + entry.span[2] * size[2];
    const Posed held = posed(poses == nullptr ? 0 : poses[first + n], size, stride + 1);
    const index_t number = entry.row < 0 ? 0 : entry.row;  // of a window that was skipped, none is read
    const T* const row = data + number * stride_n + k * stride[0] + held.origin + wz * held.step[0] + wy * held.step[1];
    // All loads before the first use of one, and without branches between them, so that they are under way together:
    // outside of the window the nearest voxel inside is read, and not added.
    bool inside[kPerThread];
    float weight[kPerThread], value[kChannels][kPerThread];
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      const index_t wx = x + j * Way::kStep - sx.at;
      inside[j] = wx >= sx.lo && wx < sx.hi;
    }
    if (Way::kStep == 1 && (x - sx.at) % kPerThread == 0 && held.step[2] == 1) {
      const index_t last = size[2] - kPerThread, wx = x - sx.at, at = wx < 0 ? 0 : wx < last ? wx : last;
      Together::load(weight_x + at, 1, 0, weight);
      if (entry.row >= 0) read_together(row + at, channels, value);
    } else {
      index_t at[kPerThread];
      HALO_UNROLL
      for (int j = 0; j < kPerThread; ++j) {
        const index_t wx = x + j * Way::kStep - sx.at;
        at[j] = wx < sx.lo ? sx.lo : wx < sx.hi ? wx : sx.hi - 1;
        weight[j] = weight_x[at[j]];
      }
      if (entry.row >= 0) read_apart(row, held.step[2], at, channels, value);
    }
    if (entry.row < 0) read_constant(k, channels, value);
    HALO_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      const float share = weight_of(wz_wy, weight[j], least);
      HALO_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        if (inside[j] && c < channels) sum[c][j] = add_weighted(sum[c][j], value[c][j], share);
      }
    }
  }

  HALO_FN void read_apart(const T* row, index_t step, const index_t (&at)[kPerThread], int channels,
                          float (&value)[kChannels][kPerThread]) const {
    T read[kChannels][kPerThread];
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const T* const plane = row + (c < channels ? c : 0) * stride[0];
      HALO_UNROLL
      for (int j = 0; j < kPerThread; ++j) read[c][j] = plane[at[j] * step];
    }
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      HALO_UNROLL
      for (int j = 0; j < kPerThread; ++j) value[c][j] = to_float(read[c][j]);
    }
  }

  HALO_FN void read_together(const T* from, int channels, float (&value)[kChannels][kPerThread]) const {
    Four<T> read[kChannels];
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      read[c] = *reinterpret_cast<const Four<T>*>(from + (c < channels ? c : 0) * stride[0]);
    }
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      HALO_UNROLL
      for (int j = 0; j < kPerThread; ++j) value[c][j] = to_float(read[c].of[j]);
    }
  }

  HALO_FN void read_constant(index_t k, int channels, float (&value)[kChannels][kPerThread]) const {
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const float given = constant[k + (c < channels ? c : 0)];
      HALO_UNROLL
      for (int j = 0; j < kPerThread; ++j) value[c][j] = given;
    }
  }
};

// ---- divide ---------------------------------------------------------------------------------------------------------

// Divides the sums by what the weights of all windows come to at each voxel: see `share_of`.
struct DivideBody {
  View<float> sums;
  const float* covers[kAxes];  // (windows, voxels of the axis)
  index_t windows[kAxes];
  float floor;

  HALO_FN index_t rows() const { return sums.shape[1] * sums.shape[2]; }
  HALO_FN index_t width() const { return sums.shape[3]; }
  HALO_FN Point row(index_t r) const { return point_of(r, sums.shape[2]); }

  HALO_FN void voxel(const Point& at, index_t x) const {
    float total = 0.0f;
    for (index_t a = 0; a < windows[0]; ++a) {
      const float wz = covers[0][a * sums.shape[1] + at.z];
      for (index_t b = 0; b < windows[1]; ++b) {
        const float wy = covers[1][b * sums.shape[2] + at.y];
        if (wz < 0.0f || wy < 0.0f) continue;
        for (index_t c = 0; c < windows[2]; ++c) total += share_of(wz, wy, covers[2][c * sums.shape[3] + x], floor);
      }
    }
    for (index_t k = 0; k < sums.shape[0]; ++k) {
      float* const sum = sums.at(k, at.z, at.y, x);
      *sum = *sum / total;
    }
  }
};

// ---- halos ----------------------------------------------------------------------------------------------------------

// out = in, both (channels, z, y, x): a halo cut out of the sums, without gaps.
struct PackBody {
  View<const float> in;
  View<float> out;

  struct Row {
    const float* from;
    float* to;
  };

  HALO_FN index_t rows() const { return in.shape[0] * in.shape[1] * in.shape[2]; }
  HALO_FN index_t width() const { return in.shape[3]; }
  HALO_FN Row row(index_t r) const {
    const Point line = point_of(r, in.shape[2]);
    const Point plane = point_of(line.z, in.shape[1]);
    return {in.at(plane.z, plane.y, line.y, 0), out.at(plane.z, plane.y, line.y, 0)};
  }
  HALO_FN float load(const Row& row, index_t x) const { return row.from[x * in.stride[3]]; }
  HALO_FN void store(const Row& row, index_t x, float value) const { row.to[x * out.stride[3]] = value; }
};

// sums += halo, of the same shape.
struct MergeBody {
  View<float> sums;
  View<const float> halo;

  struct Row {
    float* sums;
    const float* halo;
  };

  HALO_FN index_t rows() const { return halo.shape[0] * halo.shape[1] * halo.shape[2]; }
  HALO_FN index_t width() const { return halo.shape[3]; }
  HALO_FN Row row(index_t r) const {
    const Point line = point_of(r, halo.shape[2]);
    const Point plane = point_of(line.z, halo.shape[1]);
    return {sums.at(plane.z, plane.y, line.y, 0), halo.at(plane.z, plane.y, line.y, 0)};
  }
  HALO_FN float load(const Row& row, index_t x) const {
    return row.sums[x * sums.stride[3]] + row.halo[x * halo.stride[3]];
  }
  HALO_FN void store(const Row& row, index_t x, float value) const { row.sums[x * sums.stride[3]] = value; }
};

// ---- commit ---------------------------------------------------------------------------------------------------------

// A halo, and where it lies in the sums that it is merged into.
struct HaloPart {
  View<const float> values;
  index_t at[kAxes];
};

// What each voxel's sums become. `take` gets them in the order of channels, `end` may ask for each once more; `out` lies
// at the voxel's first channel.
template <typename T>
struct ToLabel {
  using Out = T;
  LabelRule rule;
  struct State {
    float best;
    std::int32_t channel;
  };
  HALO_FN State begin() const { return {minus_infinity(), 0}; }
  HALO_FN void take(State& state, index_t k, float value, T*, index_t) const {
    if (!is_larger(value, state.best)) return;
    state.best = value;
    state.channel = static_cast<std::int32_t>(k);
  }
  template <typename Values>
  HALO_FN void end(const State& state, T* out, index_t, const Values&, index_t) const {
    *out = static_cast<T>(label_of(state.best, state.channel, rule));
  }
  static constexpr bool kKeepsSums = false;
};

// Regions, which may overlap: of the channels above `above` the number of the last, as `order` says it; 0 where none is.
template <typename T>
struct ToRegions {
  using Out = T;
  float above;
  std::uint16_t order[kMostRegions];
  struct State {
    std::uint16_t label;
  };
  HALO_FN State begin() const { return {0}; }
  HALO_FN void take(State& state, index_t k, float value, T*, index_t) const {
    if (value > above) state.label = order[k];
  }
  template <typename Values>
  HALO_FN void end(const State& state, T* out, index_t, const Values&, index_t) const {
    *out = static_cast<T>(state.label);
  }
  static constexpr bool kKeepsSums = false;
};

// Each channel on its own: 1 where it lies above `above`, else 0, as labels of that channel alone would be.
template <typename T>
struct ToMask {
  using Out = T;
  float above;
  struct State {};
  HALO_FN State begin() const { return {}; }
  HALO_FN void take(State&, index_t k, float value, T* out, index_t stride) const {
    out[k * stride] = value > above ? T{1} : T{0};
  }
  template <typename Values>
  HALO_FN void end(const State&, T*, index_t, const Values&, index_t) const {}
  static constexpr bool kKeepsSums = false;
};

// Sigmoid, or clipped to 0..1.
template <typename T>
struct ToProbability {
  using Out = T;
  bool is_sigmoid;
  struct State {};
  HALO_FN State begin() const { return {}; }
  HALO_FN void take(State&, index_t k, float value, T* out, index_t stride) const {
    out[k * stride] = quantise<T>(is_sigmoid ? sigmoid(value) : clip(value));
  }
  template <typename Values>
  HALO_FN void end(const State&, T*, index_t, const Values&, index_t) const {}
  static constexpr bool kKeepsSums = false;
};

// Softmax. Sums are asked for twice more, for which a commit writes them back to where they lay: each exponential is
// computed twice rather than kept, as there may be hundreds.
template <typename T>
struct ToSoftmax {
  using Out = T;
  struct State {
    float best;
  };
  HALO_FN State begin() const { return {minus_infinity()}; }
  HALO_FN void take(State& state, index_t, float value, T*, index_t) const {
    state.best = is_larger(value, state.best) ? value : state.best;
  }
  template <typename Values>
  HALO_FN void end(const State& state, T* out, index_t stride, const Values& value, index_t channels) const {
    float total = exp_of_nonpositive(value(0) - state.best);
    for (index_t k = 1; k < channels; ++k) total += exp_of_nonpositive(value(k) - state.best);
    for (index_t k = 0; k < channels; ++k) out[k * stride] = quantise<T>(exp_of_nonpositive(value(k) - state.best) / total);
  }
  static constexpr bool kKeepsSums = true;
};

// The merged sums themselves, as float or Half.
template <typename T>
struct ToLogits {
  using Out = T;
  struct State {};
  HALO_FN State begin() const { return {}; }
  HALO_FN void take(State&, index_t k, float value, T* out, index_t stride) const {
    out[k * stride] = rounded_to<T>(value);
  }
  template <typename Values>
  HALO_FN void end(const State&, T*, index_t, const Values&, index_t) const {}
  static constexpr bool kKeepsSums = false;
};

// The sums of a voxel, by channel.
struct Lying {
  const float* sums;
  index_t stride;
  HALO_FN float operator()(index_t k) const { return sums[k * stride]; }
};

// Merges up to kMostHalos halos, in their order, and finishes each voxel, in one pass over the sums, which `out` may
// be. Sets *nonfinite where a merged sum is NaN or Inf (several threads may write the same 1).
template <typename Finish>
struct CommitBody {
  using T = typename Finish::Out;
  static constexpr int kChannels = 8;
  static constexpr int kTogether = 2;  // voxels of a thread, kLanes apart

  Finish finish;
  View<float> sums;
  View<T> out;  // one channel for labels
  HaloPart halos[kMostHalos];
  int count;
  std::int32_t* nonfinite;

  struct Row {
    float* sums;
    T* out;
    index_t z, y;
    std::uint32_t halos;  // those that meet this row
  };

  HALO_FN index_t rows() const { return sums.shape[1] * sums.shape[2]; }
  HALO_FN index_t width() const { return sums.shape[3]; }

  HALO_FN Row row(index_t r) const {
    const Point p = point_of(r, sums.shape[2]);
    Row row{sums.at(0, p.z, p.y, 0), out.at(0, p.z, p.y, 0), p.z, p.y, 0};
    for (int h = 0; h < count; ++h) {
      const HaloPart& part = halos[h];
      const index_t z = p.z - part.at[0], y = p.y - part.at[1];
      if (z >= 0 && z < part.values.shape[1] && y >= 0 && y < part.values.shape[2]) row.halos |= 1u << h;
    }
    return row;
  }

  // The voxels (x + j * kLanes), with the loads of all of them under way together.
  HALO_FN void voxels(const Row& row, index_t x) const {
    typename Finish::State state[kTogether];
    bool there[kTogether], finite = true;
    index_t at[kTogether];
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      there[j] = x + j * kLanes < width();
      at[j] = there[j] ? x + j * kLanes : x;
      state[j] = finish.begin();
    }
    for (index_t k = 0; k < sums.shape[0]; k += kChannels) {
      const int channels = static_cast<int>(sums.shape[0] - k < kChannels ? sums.shape[0] - k : kChannels);
      float value[kTogether][kChannels];
      read(row.sums + k * sums.stride[0], sums.stride[0], sums.stride[3], at, channels, value);
      for (int h = 0; h < count; ++h) {
        if (row.halos >> h & 1u) merge(halos[h], row, k, at, channels, value);
      }
      HALO_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        HALO_UNROLL
        for (int c = 0; c < kChannels; ++c) {
          if (!there[j] || c >= channels) continue;
          finite = finite && is_finite(value[j][c]);
          if (Finish::kKeepsSums) row.sums[(k + c) * sums.stride[0] + at[j] * sums.stride[3]] = value[j][c];
          finish.take(state[j], k + c, value[j][c], row.out + at[j] * out.stride[3], out.stride[0]);
        }
      }
    }
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      if (there[j]) {
        const Lying merged{row.sums + at[j] * sums.stride[3], sums.stride[0]};
        finish.end(state[j], row.out + at[j] * out.stride[3], out.stride[0], merged, sums.shape[0]);
      }
    }
    if (!finite) *nonfinite = 1;
  }

  HALO_FN void merge(const HaloPart& part, const Row& row, index_t k, const index_t (&at)[kTogether], int channels,
                     float (&value)[kTogether][kChannels]) const {
    bool meets[kTogether], any = false;
    index_t i[kTogether];
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const index_t wanted = at[j] - part.at[2], last = part.values.shape[3] - 1;
      meets[j] = wanted >= 0 && wanted <= last;
      i[j] = wanted < 0 ? 0 : wanted < last ? wanted : last;
      any = any || meets[j];
    }
    if (!any) return;
    float more[kTogether][kChannels];
    read(part.values.at(k, row.z - part.at[0], row.y - part.at[1], 0), part.values.stride[0], part.values.stride[3], i,
         channels, more);
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      HALO_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        if (meets[j] && c < channels) value[j][c] += more[j][c];
      }
    }
  }

  HALO_FN void read(const float* from, index_t stride_k, index_t stride_x, const index_t (&at)[kTogether], int channels,
                    float (&value)[kTogether][kChannels]) const {
    HALO_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      const float* const plane = from + (c < channels ? c : 0) * stride_k;
      HALO_UNROLL
      for (int j = 0; j < kTogether; ++j) value[j][c] = c < channels ? plane[at[j] * stride_x] : 0.0f;
    }
  }
};

}  // namespace unet_engine
