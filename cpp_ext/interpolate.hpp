// Separable interpolation: along each axis an output voxel is a weighted sum of neighbouring input voxels, first along
// z, then y, then x, taps in ascending order. Which voxels and which weights comes from tables
// (`engine/unet_engine/stitching/interpolation.py`), so order, ratio and edges are nobody's business here. Works on
// tiles that stay in the cache: rows of one plane are combined along z and y, sixteen rows at a time are turned so that they
// lie side by side, and the sums along x are those of vectors.
#pragma once

#include <vector>

#include "rows.hpp"

namespace unet_engine {

// Along one axis: output voxel i is the sum over t < taps of weights[i * taps + t] * input[first[i] + t]. A single tap
// has weight 1.
struct Taps {
  const std::int64_t* first;
  const float* weights;
  index_t size, taps;

  // Whether outputs are consecutive inputs.
  bool is_shift() const {
    if (taps != 1) return false;
    for (index_t i = 1; i < size; ++i) {
      if (first[i] != first[0] + i) return false;
    }
    return true;
  }
};

constexpr index_t kLanes = 16;

// One thread's work: planes of `block` along z come out interpolated.
class Interpolator {
 public:
  Interpolator(const View<const float>& block, const Taps (&axes)[kAxes])
      : block_(block), z_(axes[0]), y_(axes[1]), x_(axes[2]), shift_(axes[2].is_shift()) {}

  // The plane `z` of channel `k`; its rows are `stride` apart.
  void plane(index_t k, index_t z, float* out, index_t stride) {
    combine_z(k, z);
    if (shift_) {
      for (index_t y = 0; y < y_.size; ++y) {
        const float* row = combined_y(y) + x_.first[0];
        std::copy(row, row + x_.size, out + y * stride);
      }
      return;
    }
    lanes_.resize(static_cast<std::size_t>(block_.shape[3] * kLanes));
    turned_.resize(static_cast<std::size_t>(x_.size * kLanes));
    for (index_t y = 0; y < y_.size; y += kLanes) {
      const index_t count = std::min(kLanes, y_.size - y);
      for (index_t lane = 0; lane < count; ++lane) {
        to_lane(lanes_.data() + lane, combined_y(y + lane), block_.shape[3]);
      }
      combine_lanes(turned_.data(), lanes_.data(), x_.first, x_.weights, x_.taps, x_.size);
      for (index_t lane = 0; lane < count; ++lane) {
        from_lane(out + (y + lane) * stride, turned_.data() + lane, x_.size);
      }
    }
  }

 private:
  // The rows of the plane, combined along z: `plane_`, `pitch_` apart. Only those that an output row needs.
  void combine_z(index_t k, index_t z) {
    const float* from = block_.at(k, z_.first[z], 0, 0);
    if (z_.taps == 1) {
      plane_ = from;
      pitch_ = block_.stride[2];
      return;
    }
    index_t low = block_.shape[2], high = 0;
    for (index_t y = 0; y < y_.size; ++y) {
      low = std::min<index_t>(low, y_.first[y]);
      high = std::max<index_t>(high, y_.first[y] + y_.taps);
    }
    pitch_ = block_.shape[3];
    combined_.resize(static_cast<std::size_t>(block_.shape[2] * pitch_));
    const float* weights = z_.weights + z * z_.taps;
    for (index_t y = low; y < high; ++y) {
      const float* row = from + y * block_.stride[2];
      combine_rows(combined_.data() + y * pitch_, row, block_.stride[1], weights, z_.taps, pitch_);
    }
    plane_ = combined_.data();
  }

  const float* combined_y(index_t y) {
    const float* from = plane_ + y_.first[y] * pitch_;
    if (y_.taps == 1) return from;
    row_.resize(static_cast<std::size_t>(block_.shape[3]));
    combine_rows(row_.data(), from, pitch_, y_.weights + y * y_.taps, y_.taps, block_.shape[3]);
    return row_.data();
  }

  const View<const float> block_;
  const Taps z_, y_, x_;
  const bool shift_;
  const float* plane_ = nullptr;
  index_t pitch_ = 0;
  std::vector<float> combined_, row_, lanes_, turned_;
};

}  // namespace unet_engine
