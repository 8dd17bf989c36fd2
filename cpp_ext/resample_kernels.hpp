// Kernels of voxels that a network is fed on another grid than the scan's: normalised and interpolated in one pass, from
// the scan as it is stored. The bits are those of the CPU's path (`engine/unet_engine/volumes/resampled.py`): each voxel
// is normalised on its own, what background becomes is taken off, and sums are added up in the order of
// `interpolate.hpp`, along z first, then y, then x, taps in ascending order.
#pragma once

#include "interpolate_kernels.hpp"

namespace unet_engine {

template <typename T>
struct ResampleBody {
  static constexpr int kTogether = 4;  // voxels of a thread, kLanes apart, whose loads are under way together

  View<const T> scan;  // any strides: however it lies in memory, turned or backwards
  View<float> out;
  GridAxis axes[kAxes];
  const double *scale, *shift;  // per channel; null: voxels are taken as they are
  const Limits* limits;         // per channel; null: none
  const float* pivot;           // per channel, taken off what was normalised; null: 0

  using F = typename Normal<T>::type;
  struct Row {
    const T* from;  // the first that it is made of
    float* to;
    const float *weights_z, *weights_y;
    F scale, shift;  // in the type they are used in: a double takes two registers
    const Limits* limits;
    float pivot;
  };

  HALO_FN index_t rows() const { return out.shape[0] * axes[0].size * axes[1].size; }
  HALO_FN index_t width() const { return axes[2].size; }

  HALO_FN Row row(index_t r) const {
    const Point line = point_of(r, axes[1].size);
    const Point plane = point_of(line.z, axes[0].size);
    const index_t c = plane.z, z = plane.y, y = line.y;
    const bool as_is = scale == nullptr;
    return {scan.at(c, axes[0].at(z), axes[1].at(y), 0), out.at(c, z, y, 0),
            axes[0].weights_of(z), axes[1].weights_of(y),
            static_cast<F>(as_is ? 1.0 : scale[c]), static_cast<F>(as_is ? 0.0 : shift[c]),
            limits == nullptr ? nullptr : limits + c, pivot == nullptr ? 0.0f : pivot[c]};
  }

  // The voxels (x + j * kLanes). Beyond the row's end the first is made once more, and not stored: no branches between
  // loads.
  HALO_FN void voxels(const Row& row, index_t x) const {
    const T* from[kTogether];
    const float* weights_x[kTogether];
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const index_t at = x + j * kLanes < width() ? x + j * kLanes : x;
      from[j] = row.from + axes[2].at(at) * scan.stride[3];
      weights_x[j] = axes[2].weights_of(at);
    }
    float value[kTogether] = {};
    HALO_ROLLED
    for (index_t tx = 0; tx < axes[2].taps; ++tx) {
      float in_plane[kTogether] = {};
      HALO_ROLLED
      for (index_t ty = 0; ty < axes[1].taps; ++ty) {
        const index_t line = tx * scan.stride[3] + ty * scan.stride[2];
        float along_z[kTogether] = {};
        HALO_ROLLED
        for (index_t tz = 0; tz < axes[0].taps; ++tz) {
          float normal[kTogether];
          read(row, from, line + tz * scan.stride[1], normal);
          combine(along_z, normal, axes[0].weight(row.weights_z, tz), tz == 0);
        }
        combine(in_plane, along_z, axes[1].weight(row.weights_y, ty), ty == 0);
      }
      HALO_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        const float weighted = in_plane[j] * axes[2].weight(weights_x[j], tx);
        value[j] = tx == 0 ? weighted : value[j] + weighted;
      }
    }
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      if (x + j * kLanes < width()) row.to[(x + j * kLanes) * out.stride[3]] = value[j];
    }
  }

  // All loads before the first use of one.
  HALO_FN void read(const Row& row, const T* const (&from)[kTogether], index_t offset,
                    float (&normal)[kTogether]) const {
    T raw[kTogether];
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) raw[j] = from[j][offset];
    HALO_UNROLL
    for (int j = 0; j < kTogether; ++j) {
      const float made = row.limits == nullptr ? normalise(raw[j], row.shift, row.scale)
                                               : normalise(raw[j], row.shift, row.scale, *row.limits);
      normal[j] = made - row.pivot;
    }
  }
};

// Raises voxels to `low` and lowers them to `high`, where they lie; both have the shape of the voxels, with strides of 0
// along what they are the same for. NaN stays NaN.
struct ClipBody {
  View<float> voxels;
  View<const float> low, high;

  struct Row {
    float* voxels;
    const float *low, *high;
  };

  HALO_FN index_t rows() const { return voxels.shape[0] * voxels.shape[1] * voxels.shape[2]; }
  HALO_FN index_t width() const { return voxels.shape[3]; }
  HALO_FN Row row(index_t r) const {
    const Point line = point_of(r, voxels.shape[2]);
    const Point plane = point_of(line.z, voxels.shape[1]);
    return {voxels.at(plane.z, plane.y, line.y, 0), low.at(plane.z, plane.y, line.y, 0),
            high.at(plane.z, plane.y, line.y, 0)};
  }
  HALO_FN float load(const Row& row, index_t x) const {
    const float value = row.voxels[x * voxels.stride[3]];
    const float least = row.low[x * low.stride[3]], most = row.high[x * high.stride[3]];
    const float raised = value < least ? least : value;
    return raised > most ? most : raised;
  }
  HALO_FN void store(const Row& row, index_t x, float value) const { row.voxels[x * voxels.stride[3]] = value; }
};

}  // namespace unet_engine
