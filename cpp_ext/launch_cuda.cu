// Launches the kernels of `kernels.hpp` on a GPU. No allocation, no copy, no synchronisation: what a kernel needs is
// given by the caller, so that launches may be recorded in a CUDA graph.
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch.hpp"

namespace unet_engine::launch {
namespace {

constexpr int kRowsPerBlock = 8;
constexpr int kThreads = kLanes * kRowsPerBlock;

void check(cudaError_t error, const char* what, int device) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + " on CUDA device " + std::to_string(device) + ": " +
                           cudaGetErrorString(error));
}

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice", device);
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice", device);
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

cudaStream_t stream_of(const Queue& queue) { return reinterpret_cast<cudaStream_t>(queue.stream); }

// Enough blocks to fill any device; the kernels loop over what is left.
unsigned blocks_for(index_t work) { return static_cast<unsigned>(std::clamp<index_t>(work, 1, index_t{1} << 20)); }

__device__ __forceinline__ index_t first_row() {
  return static_cast<index_t>(blockIdx.x) * kRowsPerBlock + threadIdx.y;
}
__device__ __forceinline__ index_t row_step() { return static_cast<index_t>(gridDim.x) * kRowsPerBlock; }

// A warp per row; a thread has kPerThread loads under way before it stores.
template <typename Body>
__device__ __forceinline__ void copy_rows(const Body& body) {
  const index_t rows = body.rows(), width = body.width();
  for (index_t r = first_row(); r < rows; r += row_step()) {
    const auto row = body.row(r);
    for (index_t x = threadIdx.x; x < width; x += kLanes * kPerThread) {
      decltype(body.load(row, x)) value[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (x + j * kLanes < width) value[j] = body.load(row, x + j * kLanes);
      }
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (x + j * kLanes < width) body.store(row, x + j * kLanes, value[j]);
      }
    }
  }
}

// A warp per row, a thread per voxel.
template <typename Body>
__device__ __forceinline__ void each_voxel(const Body& body) {
  const index_t rows = body.rows(), width = body.width();
  for (index_t r = first_row(); r < rows; r += row_step()) {
    const auto row = body.row(r);
    for (index_t x = threadIdx.x; x < width; x += kLanes) body.voxel(row, x);
  }
}

// A warp per row; a thread has kTogether voxels.
template <typename Body>
__device__ __forceinline__ void together(const Body& body) {
  const index_t rows = body.rows(), width = body.width();
  for (index_t r = first_row(); r < rows; r += row_step()) {
    const auto row = body.row(r);
    for (index_t x = threadIdx.x; x < width; x += kLanes * Body::kTogether) body.voxels(row, x);
  }
}

// The numbers of the windows that meet the tile, ascending, by the first warp: their order is kept.
template <typename T>
__device__ void list_windows(const AddBody<T>& body, const index_t* lo, const index_t* hi, int* list, int* count) {
  const int lane = static_cast<int>(threadIdx.x), windows = static_cast<int>(body.count());
  int listed = 0;
  for (int first = 0; first < windows; first += kLanes) {
    const int n = first + lane;
    const bool hit = n < windows && body.meets(n, lo, hi);
    const unsigned hits = __ballot_sync(0xffffffffu, hit);
    if (hit) list[listed + __popc(hits & ((1u << lane) - 1u))] = n;
    listed += __popc(hits);
  }
  if (lane == 0) *count = listed;
}

}  // namespace

// Named kernels, so that errors, profilers and compute-sanitizer say which one it is.

template <typename T, typename U>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherBody<T, U> body) {
  copy_rows(body);
}

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackBody body) { copy_rows(body); }

__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ MergeBody body) { copy_rows(body); }

template <typename Finish>
__global__ void __launch_bounds__(kThreads) commit_kernel(const __grid_constant__ CommitBody<Finish> body) {
  together(body);
}

template <typename Finish>
__global__ void __launch_bounds__(kThreads, 3) interpolate_kernel(const __grid_constant__ InterpolateBody<Finish> body) {
  together(body);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) resample_kernel(const __grid_constant__ ResampleBody<T> body) {
  together(body);
}

__global__ void __launch_bounds__(kThreads) clip_kernel(const __grid_constant__ ClipBody body) { copy_rows(body); }

__global__ void __launch_bounds__(kThreads) divide_kernel(const __grid_constant__ DivideBody body) { each_voxel(body); }

template <typename T, typename Way>
__global__ void __launch_bounds__(kLanes * kTileY * kTileZ)
    add_kernel(const __grid_constant__ AddBody<T> body, index_t tiles_y, index_t tiles_x, index_t tiles) {
  extern __shared__ int list[];
  __shared__ int count;
  for (index_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Point line = point_of(tile, tiles_x);
    const Point plane = point_of(line.z, tiles_y);
    const index_t lo[kAxes] = {body.lo[0] + plane.z * kTileZ, body.lo[1] + plane.y * kTileY,
                               body.lo[2] + line.y * kLanes * kPerThread};
    const index_t hi[kAxes] = {lo[0] + kTileZ, lo[1] + kTileY, lo[2] + kLanes * kPerThread};
    __syncthreads();  // the list of the tile before is no longer read
    if (threadIdx.y == 0 && threadIdx.z == 0) list_windows(body, lo, hi, list, &count);
    __syncthreads();
    const index_t z = lo[0] + threadIdx.z, y = lo[1] + threadIdx.y, x = lo[2] + Way::first(threadIdx.x);
    if (count == 0 || z >= body.hi[0] || y >= body.hi[1] || x >= body.hi[2]) continue;
    body.template add<Way>(list, count, z, y, x);
  }
}

// Partial sums of a chunk of voxels: those of the lanes are added up in their order.
template <typename T, int V>
__global__ void __launch_bounds__(kNormThreads) norm_sums_kernel(const __grid_constant__ NormBody<T, V> body) {
  __shared__ double sums[kNormThreads * V], squares[kNormThreads * V];
  const index_t there = body.grid.groups < kNormThreads ? body.grid.groups : kNormThreads;
  const index_t group = blockIdx.y * static_cast<index_t>(kNormThreads) + threadIdx.x % there;
  const index_t lane = threadIdx.x / there, n = blockIdx.z, chunk = blockIdx.x;
  if (lane < body.grid.lanes && group < body.grid.groups) {
    double sum[V], square[V];
    body.add_up(n, chunk, group, lane, sum, square);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      sums[threadIdx.x + c * kNormThreads] = sum[c];
      squares[threadIdx.x + c * kNormThreads] = square[c];
    }
  }
  __syncthreads();
  for (index_t channel = threadIdx.x; channel < there * V; channel += kNormThreads) {
    const index_t place = channel / V + channel % V * kNormThreads;
    const index_t number = blockIdx.y * static_cast<index_t>(kNormThreads) * V + channel;
    if (number >= body.grid.channels) continue;
    double sum = 0.0, square = 0.0;
    for (index_t l = 0; l < body.grid.lanes; ++l) {
      sum += sums[place + l * there];
      square += squares[place + l * there];
    }
    double* const to = body.partial(n, chunk, number);
    to[0] = sum;
    to[1] = square;
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kNormFold * kNormChannels)
    norm_fold_kernel(const __grid_constant__ NormBody<T, V> body) {
  __shared__ double sums[kNormFold][kNormChannels], squares[kNormFold][kNormChannels];
  const index_t channel = blockIdx.x * static_cast<index_t>(kNormChannels) + threadIdx.x, n = blockIdx.y;
  if (channel < body.grid.channels) {
    body.fold(n, channel, threadIdx.y, sums[threadIdx.y][threadIdx.x], squares[threadIdx.y][threadIdx.x]);
  }
  __syncthreads();
  if (threadIdx.y != 0 || channel >= body.grid.channels) return;
  double sum = 0.0, square = 0.0;
  for (int f = 0; f < kNormFold; ++f) {
    sum += sums[f][threadIdx.x];
    square += squares[f][threadIdx.x];
  }
  body.finish(n, channel, sum, square);
}

// The group and the lane of a thread; false where there is nothing for it to do.
__device__ __forceinline__ bool own_group(const NormGrid& grid, index_t& group, index_t& lane) {
  const index_t there = grid.groups < kNormThreads ? grid.groups : kNormThreads;
  group = blockIdx.y * static_cast<index_t>(kNormThreads) + threadIdx.x % there;
  lane = threadIdx.x / there;
  return lane < grid.lanes && group < grid.groups;
}

template <typename T, int V>
__global__ void __launch_bounds__(kNormThreads) norm_apply_kernel(const __grid_constant__ NormBody<T, V> body) {
  index_t group, lane;
  if (own_group(body.grid, group, lane)) body.apply(blockIdx.z, blockIdx.x, group, lane);
}

template <typename T, int V>
__global__ void __launch_bounds__(kNormThreads) put_kernel(const __grid_constant__ PutBody<T, V> body) {
  index_t group, lane;
  if (own_group(body.grid, group, lane)) body.put(blockIdx.z, blockIdx.x, group, lane);
}

namespace {

template <typename Kernel, typename Body>
void launch_rows(const Queue& queue, const Body& body, Kernel kernel, const char* name) {
  if (body.rows() <= 0 || body.width() <= 0) return;
  const DeviceGuard guard(queue.device);
  kernel<<<blocks_for((body.rows() + kRowsPerBlock - 1) / kRowsPerBlock), dim3(kLanes, kRowsPerBlock), 0,
           stream_of(queue)>>>(body);
  check(cudaGetLastError(), name, queue.device);
}

dim3 blocks_of(const NormGrid& grid) {
  return dim3(static_cast<unsigned>(grid.chunks), static_cast<unsigned>(grid.wide), static_cast<unsigned>(grid.windows));
}

template <typename Kernel, typename T>
void launch_add(const Queue& queue, const AddBody<T>& body, Kernel kernel) {
  index_t tiles[kAxes];
  const index_t tile[kAxes] = {kTileZ, kTileY, kLanes * kPerThread};
  for (int a = 0; a < kAxes; ++a) tiles[a] = std::max<index_t>(0, (body.hi[a] - body.lo[a] + tile[a] - 1) / tile[a]);
  const index_t total = tiles[0] * tiles[1] * tiles[2];
  if (total == 0 || body.count() <= 0) return;
  const DeviceGuard guard(queue.device);
  const std::size_t shared = static_cast<std::size_t>(body.count()) * sizeof(int);
  kernel<<<blocks_for(total), dim3(kLanes, kTileY, kTileZ), shared, stream_of(queue)>>>(body, tiles[1], tiles[2], total);
  check(cudaGetLastError(), "add_kernel", queue.device);
}

}  // namespace

template <typename T, typename U>
void gather(const Queue& queue, const GatherBody<T, U>& body) {
  launch_rows(queue, body, gather_kernel<T, U>, "gather_kernel");
}

void pack(const Queue& queue, const PackBody& body) { launch_rows(queue, body, pack_kernel, "pack_kernel"); }

void merge(const Queue& queue, const MergeBody& body) { launch_rows(queue, body, merge_kernel, "merge_kernel"); }

void divide(const Queue& queue, const DivideBody& body) { launch_rows(queue, body, divide_kernel, "divide_kernel"); }

template <typename Finish>
void commit(const Queue& queue, const CommitBody<Finish>& body) {
  launch_rows(queue, body, commit_kernel<Finish>, "commit_kernel");
}

template <typename Finish>
void interpolate(const Queue& queue, const InterpolateBody<Finish>& body) {
  launch_rows(queue, body, interpolate_kernel<Finish>, "interpolate_kernel");
}

template <typename T>
void resample(const Queue& queue, const ResampleBody<T>& body) {
  launch_rows(queue, body, resample_kernel<T>, "resample_kernel");
}

void clip(const Queue& queue, const ClipBody& body) { launch_rows(queue, body, clip_kernel, "clip_kernel"); }

template <typename T>
void add(const Queue& queue, const AddBody<T>& body) {
  if (body.has_aligned_rows()) {
    launch_add(queue, body.from_aligned(), add_kernel<T, Together>);
  } else {
    launch_add(queue, body, add_kernel<T, Apart>);
  }
}

template <typename T, int V>
void put(const Queue& queue, const PutBody<T, V>& body) {
  if (body.grid.windows <= 0 || body.grid.voxels <= 0 || body.grid.channels <= 0) return;
  const DeviceGuard guard(queue.device);
  put_kernel<T, V><<<blocks_of(body.grid), kNormThreads, 0, stream_of(queue)>>>(body);
  check(cudaGetLastError(), "put_kernel", queue.device);
}

template <typename T, int V>
void instance_norm(const Queue& queue, const NormBody<T, V>& body) {
  const NormGrid& grid = body.grid;
  if (grid.windows <= 0 || grid.voxels <= 0 || grid.channels <= 0) return;
  const DeviceGuard guard(queue.device);
  const dim3 blocks = blocks_of(grid);
  norm_sums_kernel<T, V><<<blocks, kNormThreads, 0, stream_of(queue)>>>(body);
  check(cudaGetLastError(), "norm_sums_kernel", queue.device);
  const dim3 folds(static_cast<unsigned>((grid.channels + kNormChannels - 1) / kNormChannels),
                   static_cast<unsigned>(grid.windows));
  norm_fold_kernel<T, V><<<folds, dim3(kNormChannels, kNormFold), 0, stream_of(queue)>>>(body);
  check(cudaGetLastError(), "norm_fold_kernel", queue.device);
  norm_apply_kernel<T, V><<<blocks, kNormThreads, 0, stream_of(queue)>>>(body);
  check(cudaGetLastError(), "norm_apply_kernel", queue.device);
}

HALO_INSTANTIATE_LAUNCHERS

}  // namespace unet_engine::launch
