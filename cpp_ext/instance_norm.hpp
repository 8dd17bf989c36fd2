// InstanceNorm with LeakyReLU on batches whose channels lie last: the mean and variance of each channel of each window
// in one pass, normalising and the activation in a second, which may write into a slice of a larger batch (what is
// concatenated); and putting what is not normalised there. `launch_cuda.cu` launches these bodies over a grid,
// `launch_loop.cpp` runs the same in loops.
//
// A block has kNormThreads threads: `groups` of channels that one load takes, next to one another, times `lanes` of
// voxels. It takes `lanes * span` voxels, each thread every lanes-th of them. Sums of squares are taken from the
// thread's first voxel in float32 and added up in float64, always in the same order, so that neither a large mean nor
// the device decides the bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "arithmetic.hpp"

namespace unet_engine {

constexpr int kNormThreads = 256;
constexpr int kNormFold = 16;      // threads that add up the partial sums of one channel
constexpr int kNormChannels = 32;  // channels of a block that does
constexpr int kNormTogether = 4;   // loads of a thread that are under way at once
constexpr int kNormOutputs = 2;

// `V` elements that are loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Several {
  T of[V];
};

// How many elements a load of 16 bytes takes.
template <typename T>
constexpr int kNormWidth = 16 / static_cast<int>(sizeof(T));

struct NormGrid {
  index_t windows, voxels, channels;
  index_t groups, lanes, span, chunks, wide;  // wide: blocks that the groups of a voxel take

  NormGrid(index_t n, index_t v, index_t c, int width) : windows(n), voxels(v), channels(c), groups(c / width) {
    lanes = std::max<index_t>(1, kNormThreads / groups);
    wide = (groups + kNormThreads - 1) / kNormThreads;
    const index_t blocks = 512;  // of a window: some for each multiprocessor
    span = std::clamp<index_t>((voxels + lanes * blocks - 1) / (lanes * blocks), kNormTogether, 64);
    chunks = std::max<index_t>(1, (voxels + lanes * span - 1) / (lanes * span));
  }

  index_t partials() const { return 2 * windows * chunks * channels; }   // float64
  index_t coefficients() const { return 3 * windows * channels; }        // float32: mean, scale, shift
};

// A batch with channels last: `pitch` elements from voxel to voxel.
template <typename T>
struct NormBatch {
  T* data;
  index_t stride_n, pitch;
};

// A batch that is read once, and written to one or two.
template <typename T, int V>
struct PutBody {
  NormGrid grid;
  NormBatch<const T> in;
  NormBatch<T> out[kNormOutputs];
  int outputs;

  using Pack = Several<T, V>;

  // The voxels of a thread: begin, begin + lanes, ...; fewer than `span` at the end of the window.
  HALO_FN index_t begin(index_t chunk, index_t lane) const { return chunk * grid.lanes * grid.span + lane; }
  HALO_FN index_t count(index_t first) const {
    if (first >= grid.voxels) return 0;
    const index_t left = (grid.voxels - first + grid.lanes - 1) / grid.lanes;
    return left < grid.span ? left : grid.span;
  }

  HALO_FN static Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }

  HALO_FN void store(index_t n, index_t voxel, index_t group, const Pack& value) const {
    HALO_UNROLL
    for (int o = 0; o < kNormOutputs; ++o) {
      if (o >= outputs) continue;
      T* const to = out[o].data + n * out[o].stride_n + voxel * out[o].pitch + group * V;
      *reinterpret_cast<Pack*>(to) = value;
    }
  }

  HALO_FN const T* source(index_t n, index_t voxel, index_t group) const {
    return in.data + n * in.stride_n + voxel * in.pitch + group * V;
  }

  // Gives `take` the number and the channels of each of a thread's `voxels` voxels, kNormTogether loads ahead.
  template <typename Take>
  HALO_FN void each(index_t n, index_t first, index_t voxels, index_t group, const Take& take) const {
    const index_t step = grid.lanes * in.pitch;
    const T* from = source(n, first, group);
    index_t i = 0;
    for (; i + kNormTogether <= voxels; i += kNormTogether) {
      Pack read[kNormTogether];
      HALO_UNROLL
      for (int j = 0; j < kNormTogether; ++j) read[j] = load(from + j * step);
      from += kNormTogether * step;
      HALO_UNROLL
      for (int j = 0; j < kNormTogether; ++j) take(first + (i + j) * grid.lanes, read[j]);
    }
    for (; i < voxels; ++i, from += step) take(first + i * grid.lanes, load(from));
  }

  HALO_FN void put(index_t n, index_t chunk, index_t group, index_t lane) const {
    const index_t first = begin(chunk, lane);
    each(n, first, count(first), group, [&](index_t voxel, const Pack& read) { store(n, voxel, group, read); });
  }
};

template <typename T, int V>
struct NormBody : PutBody<T, V> {
  using Base = PutBody<T, V>;
  using typename Base::Pack;
  using Base::grid, Base::in, Base::begin, Base::count, Base::load;

  const float* weight;  // per channel; null: 1
  const float* bias;    // null: 0
  double eps;
  float slope;          // of the activation below 0; 1: none
  double* partials;     // (windows, chunks, channels, 2)
  float* coefficients;  // (windows, 3, channels)

  // What a thread adds up: sums and sums of squares of its channels.
  HALO_FN void add_up(index_t n, index_t chunk, index_t group, index_t lane, double (&sum)[V],
                      double (&square)[V]) const {
    const index_t first = begin(chunk, lane), voxels = count(first);
    HALO_UNROLL
    for (int c = 0; c < V; ++c) sum[c] = square[c] = 0.0;
    if (voxels == 0) return;
    float origin[V], s[V], q[V];
    const Pack at_first = load(this->source(n, first, group));
    HALO_UNROLL
    for (int c = 0; c < V; ++c) {
      origin[c] = to_float(at_first.of[c]);
      s[c] = q[c] = 0.0f;
    }
    this->each(n, first, voxels, group, [&](index_t, const Pack& read) { add_voxel(read, origin, s, q); });
    const double number = static_cast<double>(voxels);
    HALO_UNROLL
    for (int c = 0; c < V; ++c) {
      const double o = origin[c], part = s[c];
      sum[c] = part + number * o;
      square[c] = static_cast<double>(q[c]) + 2.0 * o * part + number * o * o;
    }
  }

  HALO_FN static void add_voxel(const Pack& read, const float (&origin)[V], float (&s)[V], float (&q)[V]) {
    HALO_UNROLL
    for (int c = 0; c < V; ++c) {
      const float apart = to_float(read.of[c]) - origin[c];
      s[c] += apart;
      q[c] += apart * apart;
    }
  }

  HALO_FN double* partial(index_t n, index_t chunk, index_t channel) const {
    return partials + 2 * ((n * grid.chunks + chunk) * grid.channels + channel);
  }

  // The part of one channel's sums that thread `fold` of kNormFold adds up.
  HALO_FN void fold(index_t n, index_t channel, index_t fold, double& sum, double& square) const {
    sum = square = 0.0;
    for (index_t chunk = fold; chunk < grid.chunks; chunk += kNormFold) {
      const double* const from = partial(n, chunk, channel);
      sum += from[0];
      square += from[1];
    }
  }

  // What normalising a channel takes, from its sums over the window.
  HALO_FN void finish(index_t n, index_t channel, double sum, double square) const {
    const double voxels = static_cast<double>(grid.voxels), mean = sum / voxels;
    const double spread = square / voxels - mean * mean;
    const double scale = (weight == nullptr ? 1.0 : static_cast<double>(weight[channel])) /
                         sqrt((spread < 0.0 ? 0.0 : spread) + eps);
    float* const to = coefficients + n * 3 * grid.channels + channel;
    to[0] = static_cast<float>(mean);
    to[grid.channels] = static_cast<float>(scale);
    to[2 * grid.channels] = bias == nullptr ? 0.0f : bias[channel];
  }

  // What makes a voxel's channels of one group normal.
  struct Normal {
    float mean[V], scale[V], shift[V], slope;

    HALO_FN Pack operator()(const Pack& read) const {
      Pack made;
      HALO_UNROLL
      for (int c = 0; c < V; ++c) {
        const float value = (to_float(read.of[c]) - mean[c]) * scale[c] + shift[c];
        made.of[c] = rounded_to<T>(value > 0.0f ? value : value * slope);
      }
      return made;
    }
  };

  // Normalises the voxels of a thread.
  HALO_FN void apply(index_t n, index_t chunk, index_t group, index_t lane) const {
    const index_t first = begin(chunk, lane), voxels = count(first);
    if (voxels == 0) return;
    const float* const given = coefficients + n * 3 * grid.channels + group * V;
    Normal normal;
    normal.slope = slope;
    HALO_UNROLL
    for (int c = 0; c < V; ++c) {
      normal.mean[c] = given[c];
      normal.scale[c] = given[grid.channels + c];
      normal.shift[c] = given[2 * grid.channels + c];
    }
    const auto make = [&](index_t voxel, const Pack& read) { this->store(n, voxel, group, normal(read)); };
    this->each(n, first, voxels, group, make);
  }
};

}  // namespace unet_engine
