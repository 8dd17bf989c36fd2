// Runs the kernels of `kernels.hpp` on the CPU, thread after thread of the grid that `launch_cuda.cu` would launch:
// what the tests and the simulated device run, so that indexing, layouts and types are checked where there is no GPU.
// Not fast, and not meant to be.
#include <algorithm>
#include <vector>

#include "launch.hpp"

namespace unet_engine::launch {
namespace {

// Lanes one after the other, each with its kPerThread loads before its stores, as on the GPU.
template <typename Body>
void run_rows(const Body& body) {
  for (index_t r = 0; r < body.rows(); ++r) {
    const auto row = body.row(r);
    for (index_t base = 0; base < body.width(); base += kLanes * kPerThread) {
      for (index_t x = base; x < std::min(body.width(), base + kLanes); ++x) {
        decltype(body.load(row, x)) value[kPerThread] = {};
        for (int j = 0; j < kPerThread; ++j) {
          if (x + j * kLanes < body.width()) value[j] = body.load(row, x + j * kLanes);
        }
        for (int j = 0; j < kPerThread; ++j) {
          if (x + j * kLanes < body.width()) body.store(row, x + j * kLanes, value[j]);
        }
      }
    }
  }
}

template <typename Body>
void run_voxels(const Body& body) {
  for (index_t r = 0; r < body.rows(); ++r) {
    const auto row = body.row(r);
    for (index_t x = 0; x < body.width(); ++x) body.voxel(row, x);
  }
}

// Lanes one after the other, each with its kTogether voxels.
template <typename Body>
void run_together(const Body& body) {
  for (index_t r = 0; r < body.rows(); ++r) {
    const auto row = body.row(r);
    for (index_t base = 0; base < body.width(); base += kLanes * Body::kTogether) {
      for (index_t x = base; x < std::min(body.width(), base + kLanes); ++x) body.voxels(row, x);
    }
  }
}

template <typename Way, typename T>
void add_tiles(const AddBody<T>& body) {
  std::vector<int> list;
  for (index_t z0 = body.lo[0]; z0 < body.hi[0]; z0 += kTileZ) {
    for (index_t y0 = body.lo[1]; y0 < body.hi[1]; y0 += kTileY) {
      for (index_t x0 = body.lo[2]; x0 < body.hi[2]; x0 += kLanes * kPerThread) {
        const index_t lo[kAxes] = {z0, y0, x0}, hi[kAxes] = {z0 + kTileZ, y0 + kTileY, x0 + kLanes * kPerThread};
        list.clear();
        for (index_t n = 0; n < body.count(); ++n) {
          if (body.meets(n, lo, hi)) list.push_back(static_cast<int>(n));
        }
        if (list.empty()) continue;
        for (index_t z = z0; z < std::min(body.hi[0], hi[0]); ++z) {
          for (index_t y = y0; y < std::min(body.hi[1], hi[1]); ++y) {
            for (index_t lane = 0; lane < kLanes; ++lane) {
              const index_t x = x0 + Way::first(lane);
              if (x < body.hi[2]) body.template add<Way>(list.data(), static_cast<int>(list.size()), z, y, x);
            }
          }
        }
      }
    }
  }
}

}  // namespace

template <typename T, typename U>
void gather(const Queue&, const GatherBody<T, U>& body) {
  run_rows(body);
}

void pack(const Queue&, const PackBody& body) { run_rows(body); }

void merge(const Queue&, const MergeBody& body) { run_rows(body); }

template <typename Finish>
void commit(const Queue&, const CommitBody<Finish>& body) {
  run_together(body);
}

template <typename Finish>
void interpolate(const Queue&, const InterpolateBody<Finish>& body) {
  run_together(body);
}

template <typename T>
void resample(const Queue&, const ResampleBody<T>& body) {
  run_together(body);
}

void clip(const Queue&, const ClipBody& body) { run_rows(body); }

void divide(const Queue&, const DivideBody& body) { run_voxels(body); }

template <typename T>
void add(const Queue&, const AddBody<T>& body) {
  if (body.has_aligned_rows()) {
    add_tiles<Together>(body.from_aligned());
  } else {
    add_tiles<Apart>(body);
  }
}

template <typename T, int V>
void put(const Queue&, const PutBody<T, V>& body) {
  const NormGrid& grid = body.grid;
  for (index_t n = 0; n < grid.windows; ++n) {
    for (index_t chunk = 0; chunk < grid.chunks; ++chunk) {
      for (index_t group = 0; group < grid.groups; ++group) {
        for (index_t lane = 0; lane < grid.lanes; ++lane) body.put(n, chunk, group, lane);
      }
    }
  }
}

template <typename T, int V>
void instance_norm(const Queue&, const NormBody<T, V>& body) {
  const NormGrid& grid = body.grid;
  for (index_t n = 0; n < grid.windows; ++n) {
    for (index_t chunk = 0; chunk < grid.chunks; ++chunk) {
      for (index_t group = 0; group < grid.groups; ++group) {
        double total[V] = {}, squares[V] = {};
        for (index_t lane = 0; lane < grid.lanes; ++lane) {
          double sum[V], square[V];
          body.add_up(n, chunk, group, lane, sum, square);
          for (int c = 0; c < V; ++c) {
            total[c] += sum[c];
            squares[c] += square[c];
          }
        }
        for (int c = 0; c < V; ++c) {
          double* const to = body.partial(n, chunk, group * V + c);
          to[0] = total[c];
          to[1] = squares[c];
        }
      }
    }
    for (index_t channel = 0; channel < grid.channels; ++channel) {
      double total = 0.0, squares = 0.0;
      for (index_t f = 0; f < kNormFold; ++f) {
        double sum, square;
        body.fold(n, channel, f, sum, square);
        total += sum;
        squares += square;
      }
      body.finish(n, channel, total, squares);
    }
    for (index_t chunk = 0; chunk < grid.chunks; ++chunk) {
      for (index_t group = 0; group < grid.groups; ++group) {
        for (index_t lane = 0; lane < grid.lanes; ++lane) body.apply(n, chunk, group, lane);
      }
    }
  }
}

HALO_INSTANTIATE_LAUNCHERS

}  // namespace unet_engine::launch
