// Kernels of sums that are interpolated to the grid of the scan, and finished there. What voxels are made of comes from
// the tables of `engine/unet_engine/stitching/interpolation.py`, and each is added up in the order of `interpolate.hpp`,
// so that all give the same bits: along z first, then y, then x, taps in ascending order.
#pragma once

#include "kernels.hpp"

namespace unet_engine {

// Along one axis: voxel i is the sum over t < taps of weights[i * taps + t] times what lies at first[i] + t - begin.
struct GridAxis {
  const std::int32_t* first;  // null: voxel i is what lies at i
  const float* weights;
  index_t size, taps, begin;

  HALO_FN index_t at(index_t i) const { return first == nullptr ? i : first[i] - begin; }
  HALO_FN const float* weights_of(index_t i) const { return weights + (first == nullptr ? 0 : i * taps); }
  // A single tap has weight 1.
  HALO_FN float weight(const float* of, index_t t) const { return taps == 1 ? 1.0f : of[t]; }
};

// sum += value * weight, or begins so.
template <int C>
HALO_FN void combine(float (&sum)[C], const float (&value)[C], float weight, bool begins) {
  HALO_UNROLL
  for (int c = 0; c < C; ++c) {
    const float weighted = value[c] * weight;
    sum[c] = begins ? weighted : sum[c] + weighted;
  }
}

// out = what `finish` makes of sums that are interpolated along all axes. Interpolated sums are nowhere stored.
template <typename Finish>
struct InterpolateBody {
  using T = typename Finish::Out;
  static constexpr int kChannels = 4;  // whose loads are under way together
  static constexpr int kTogether = 1;  // voxels of a thread

  Finish finish;
  View<const float> sums;
  View<T> out;  // one channel for labels
  GridAxis axes[kAxes];

  struct Row {
    const float* sums;  // the first that it is made of
    T* out;
    const float *weights_z, *weights_y;
  };

  HALO_FN index_t rows() const { return axes[0].size * axes[1].size; }
  HALO_FN index_t width() const { return axes[2].size; }

  HALO_FN Row row(index_t r) const {
    const Point p = point_of(r, axes[1].size);
    return {sums.at(0, axes[0].at(p.z), axes[1].at(p.y), 0), out.at(0, p.z, p.y, 0), axes[0].weights_of(p.z),
            axes[1].weights_of(p.y)};
  }

  // The first of the sums that a voxel is made of, and its weights.
  struct Place {
    const float *sums, *weights_z, *weights_y, *weights_x;
  };

  // The sum of channel k at a voxel, once more.
  struct Again {
    const InterpolateBody& body;
    const Place& place;
    HALO_FN float operator()(index_t k) const {
      float value[1] = {};
      body.interpolate(place, k, 1, value);
      return value[0];
    }
  };

  HALO_FN void voxels(const Row& row, index_t x) const {
    const Place place{row.sums + axes[2].at(x) * sums.stride[3], row.weights_z, row.weights_y, axes[2].weights_of(x)};
    T* const to = row.out + x * out.stride[3];
    typename Finish::State state = finish.begin();
    HALO_ROLLED
    for (index_t k = 0; k < sums.shape[0]; k += kChannels) {
      const int channels = static_cast<int>(sums.shape[0] - k < kChannels ? sums.shape[0] - k : kChannels);
      float value[kChannels] = {};
      interpolate(place, k, channels, value);
      HALO_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        if (c < channels) finish.take(state, k + c, value[c], to, out.stride[0]);
      }
    }
    finish.end(state, to, out.stride[0], Again{*this, place}, sums.shape[0]);
  }

  // The channels k to k + channels of a voxel. Without a branch between loads: what lacks is the first once more.
  template <int C>
  HALO_FN void interpolate(const Place& place, index_t k, int channels, float (&value)[C]) const {
    const float* row = place.sums + k * sums.stride[0];
    HALO_ROLLED
    for (index_t tx = 0; tx < axes[2].taps; ++tx, row += sums.stride[3]) {
      const float* line = row;
      float in_plane[C] = {};
      HALO_ROLLED
      for (index_t ty = 0; ty < axes[1].taps; ++ty, line += sums.stride[2]) {
        const float* tap = line;
        float along_z[C] = {};
        HALO_ROLLED
        for (index_t tz = 0; tz < axes[0].taps; ++tz, tap += sums.stride[1]) {
          float read[C];
          HALO_UNROLL
          for (int c = 0; c < C; ++c) read[c] = tap[(c < channels ? c : 0) * sums.stride[0]];
          combine(along_z, read, axes[0].weight(place.weights_z, tz), tz == 0);
        }
        combine(in_plane, along_z, axes[1].weight(place.weights_y, ty), ty == 0);
      }
      combine(value, in_plane, axes[2].weight(place.weights_x, tx), tx == 0);
    }
  }
};

}  // namespace unet_engine
