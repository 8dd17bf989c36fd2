// The arithmetic of `halo.hpp` on the GPU, in gather form: a thread owns a voxel of the sums and adds to it what covers it,
// in order. No atomics, so the bits are the CPU's, and the sums are read and written once per batch.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "halo_cuda.hpp"

namespace unet_engine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kChannels = 4;        // channels that share one look at the batch and one product of weights
constexpr int kMostWindows = 8192;  // of a batch: their numbers must fit into shared memory

void check(cudaError_t error, const char* what, int device) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + " on CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(error));
}

// Makes a device current for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice", device);
    check(cudaSetDevice(device), "cudaSetDevice", device);
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

cudaStream_t stream_of(const Queue& queue) { return reinterpret_cast<cudaStream_t>(queue.stream); }

// Device memory in the order of a stream: taken and given back without waiting for the device.
class Scratch {
 public:
  Scratch(const Queue& queue, std::size_t bytes) : stream_(stream_of(queue)) {
    check(cudaMallocAsync(&data_, bytes, stream_), "scratch memory", queue.device);
  }
  ~Scratch() { cudaFreeAsync(data_, stream_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  cudaStream_t stream_;
  void* data_ = nullptr;
};

struct Position {
  index_t z, y, x;
};

__device__ __forceinline__ Position position_of(index_t i, const index_t* shape) {
  const index_t row = i / shape[2];
  return {row / shape[1], row % shape[1], i % shape[2]};
}

__device__ __forceinline__ index_t first_index() { return static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ index_t index_step() { return static_cast<index_t>(gridDim.x) * blockDim.x; }

// A box of voxels of the sums, cut into tiles of blockDim.
struct Tiles {
  index_t lo[kAxes];
  index_t hi[kAxes];
  index_t count[kAxes];

  __host__ __device__ index_t total() const { return count[0] * count[1] * count[2]; }
};

__device__ __forceinline__ bool meets(const Placement& place, const index_t* lo, const index_t* hi) {
  bool result = true;
  for (int a = 0; a < kAxes; ++a) {
    result = result && place.at[a] + place.lo[a] < hi[a] && lo[a] < place.at[a] + place.hi[a];
  }
  return result;
}

// The numbers of the windows that meet the tile, ascending, by the first warp: the order of the batch is kept.
__device__ void list_windows(const Placement* places, int windows, const index_t* lo, const index_t* hi, int* list, int* count) {
  const int lane = static_cast<int>(threadIdx.x);
  int listed = 0;
  for (int first = 0; first < windows; first += kWarp) {
    const int n = first + lane;
    const bool hit = n < windows && meets(places[n], lo, hi);
    const unsigned hits = __ballot_sync(0xffffffffu, hit);
    if (hit) list[listed + __popc(hits & ((1u << lane) - 1u))] = n;
    listed += __popc(hits);
  }
  if (lane == 0) *count = listed;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_batch_kernel(View<float> sums, Batch<T> windows, Tiles tiles,
                                                             const Placement* places, const float* weights) {
  extern __shared__ int list[];
  __shared__ int count;
  const index_t size_z = windows.size[0], size_y = windows.size[1];
  const index_t weights_of_one = size_z + size_y + windows.size[2];
  for (index_t tile = blockIdx.x; tile < tiles.total(); tile += gridDim.x) {
    const Position t = position_of(tile, tiles.count);
    const index_t lo[kAxes] = {tiles.lo[0] + t.z * blockDim.z, tiles.lo[1] + t.y * blockDim.y, tiles.lo[2] + t.x * blockDim.x};
    const index_t hi[kAxes] = {lo[0] + blockDim.z, lo[1] + blockDim.y, lo[2] + blockDim.x};
    __syncthreads();  // the list of the tile before is no longer read
    if (threadIdx.y == 0 && threadIdx.z == 0) list_windows(places, static_cast<int>(windows.count), lo, hi, list, &count);
    __syncthreads();
    const index_t z = lo[0] + threadIdx.z, y = lo[1] + threadIdx.y, x = lo[2] + threadIdx.x;
    if (count == 0 || z >= tiles.hi[0] || y >= tiles.hi[1] || x >= tiles.hi[2]) continue;
    for (index_t k = 0; k < sums.shape[0]; k += kChannels) {
      const int channels = static_cast<int>(sums.shape[0] - k < kChannels ? sums.shape[0] - k : kChannels);
      float sum[kChannels];
      bool touched = false;
      for (int i = 0; i < count; ++i) {
        const Placement& place = places[list[i]];
        const index_t wz = z - place.at[0], wy = y - place.at[1], wx = x - place.at[2];
        if (wz < place.lo[0] || wz >= place.hi[0] || wy < place.lo[1] || wy >= place.hi[1] || wx < place.lo[2] ||
            wx >= place.hi[2]) {
          continue;
        }
        const float* w = weights + list[i] * weights_of_one;
        const float weight = weight_of(weight_of(w[wz], w[size_z + wy]), w[size_z + size_y + wx]);
        const T* value = windows.data + list[i] * windows.stride_n + k * windows.stride[0] + wz * windows.stride[1] +
                         wy * windows.stride[2] + wx * windows.stride[3];
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          if (j >= channels) break;
          if (!touched) sum[j] = *sums.at(k + j, z, y, x);
          sum[j] = add_weighted(sum[j], to_float(value[j * windows.stride[0]]), weight);
        }
        touched = true;
      }
      if (!touched) continue;
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if (j < channels) *sums.at(k + j, z, y, x) = sum[j];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) merge_kernel(View<float> sums, View<const float> halo) {
  const index_t voxels = halo.shape[1] * halo.shape[2] * halo.shape[3];
  for (index_t i = first_index(); i < halo.shape[0] * voxels; i += index_step()) {
    const Position p = position_of(i % voxels, halo.shape + 1);
    *sums.at(i / voxels, p.z, p.y, p.x) += *halo.at(i / voxels, p.z, p.y, p.x);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) labels_kernel(View<const float> sums, View<T> out, bool threshold) {
  const index_t voxels = sums.shape[1] * sums.shape[2] * sums.shape[3];
  for (index_t i = first_index(); i < voxels; i += index_step()) {
    const Position p = position_of(i, sums.shape + 1);
    const float* value = sums.at(0, p.z, p.y, p.x);
    float best = minus_infinity();
    std::int32_t channel = 0;
    for (index_t k = 0; k < sums.shape[0]; ++k, value += sums.stride[0]) {
      if (!is_larger(*value, best)) continue;
      best = *value;
      channel = static_cast<std::int32_t>(k);
    }
    *out.at(0, p.z, p.y, p.x) = static_cast<T>(label_of(best, channel, threshold));
  }
}

// Computes each exponential twice rather than keep as many as there are channels.
template <typename T>
__device__ void softmax_voxel(const float* in, index_t in_stride, T* out, index_t out_stride, index_t channels) {
  float best = minus_infinity();
  for (index_t k = 0; k < channels; ++k) best = is_larger(in[k * in_stride], best) ? in[k * in_stride] : best;
  float total = exp_of_nonpositive(in[0] - best);
  for (index_t k = 1; k < channels; ++k) total += exp_of_nonpositive(in[k * in_stride] - best);
  for (index_t k = 0; k < channels; ++k) {
    out[k * out_stride] = quantise<T>(exp_of_nonpositive(in[k * in_stride] - best) / total);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) probabilities_kernel(View<const float> sums, View<T> out, Activation activation) {
  const index_t voxels = sums.shape[1] * sums.shape[2] * sums.shape[3];
  for (index_t i = first_index(); i < voxels; i += index_step()) {
    const Position p = position_of(i, sums.shape + 1);
    const float* in = sums.at(0, p.z, p.y, p.x);
    T* to = out.at(0, p.z, p.y, p.x);
    if (activation == Activation::kSoftmax) {
      softmax_voxel(in, sums.stride[0], to, out.stride[0], sums.shape[0]);
      continue;
    }
    for (index_t k = 0; k < sums.shape[0]; ++k) {
      const float value = in[k * sums.stride[0]];
      to[k * out.stride[0]] = quantise<T>(activation == Activation::kSigmoid ? sigmoid(value) : clip(value));
    }
  }
}

// Enough blocks to fill any device; the kernels loop over what is left.
unsigned blocks_for(index_t work) { return static_cast<unsigned>(std::clamp<index_t>(work, 1, index_t{1} << 20)); }
unsigned blocks_of_threads_for(index_t work) { return blocks_for((work + kThreads - 1) / kThreads); }

bool is_empty(const Placement& place) {
  return place.hi[0] <= place.lo[0] || place.hi[1] <= place.lo[1] || place.hi[2] <= place.lo[2];
}

// The box that holds all voxels that the batch adds to; no tile where there are none.
Tiles tiles_of(const std::vector<Placement>& places, const dim3& block) {
  const index_t tile[kAxes] = {block.z, block.y, block.x};
  Tiles tiles{};
  bool first = true;
  for (const Placement& place : places) {
    if (is_empty(place)) continue;
    for (int a = 0; a < kAxes; ++a) {
      const index_t lo = place.at[a] + place.lo[a], hi = place.at[a] + place.hi[a];
      tiles.lo[a] = first ? lo : std::min(tiles.lo[a], lo);
      tiles.hi[a] = first ? hi : std::max(tiles.hi[a], hi);
      tiles.count[a] = (tiles.hi[a] - tiles.lo[a] + tile[a] - 1) / tile[a];
    }
    first = false;
  }
  return tiles;
}

}  // namespace

template <typename T>
void add_batch(const Queue& queue, const View<float>& sums, const Batch<T>& windows, const std::vector<Placement>& host_places,
               const std::vector<float>& host_weights) {
  if (host_places.size() > kMostWindows) {
    throw std::runtime_error("add_batch takes " + std::to_string(kMostWindows) + " windows at most: give smaller batches");
  }
  const dim3 block = sums.shape[1] == 1 ? dim3(kWarp, 8, 1) : dim3(kWarp, 4, 2);
  const Tiles tiles = tiles_of(host_places, block);
  if (tiles.total() == 0) return;
  const DeviceGuard guard(queue.device);
  const std::size_t bytes_places = host_places.size() * sizeof(Placement), bytes_weights = host_weights.size() * sizeof(float);
  std::vector<std::byte> packed(bytes_places + bytes_weights);
  std::memcpy(packed.data(), host_places.data(), bytes_places);
  std::memcpy(packed.data() + bytes_places, host_weights.data(), bytes_weights);
  const Scratch scratch(queue, packed.size());
  // From pageable memory: the call returns after the bytes were taken over, so `packed` may go.
  check(cudaMemcpyAsync(scratch.data(), packed.data(), packed.size(), cudaMemcpyHostToDevice, stream_of(queue)),
        "copy of the batch's placement", queue.device);
  add_batch_kernel<<<blocks_for(tiles.total()), block, host_places.size() * sizeof(int), stream_of(queue)>>>(
      sums, windows, tiles, reinterpret_cast<const Placement*>(scratch.data()),
      reinterpret_cast<const float*>(scratch.data() + bytes_places));
  check(cudaGetLastError(), "add_batch_kernel", queue.device);
}

void merge(const Queue& queue, const View<float>& sums, const View<const float>& halo) {
  const DeviceGuard guard(queue.device);
  const index_t work = halo.shape[0] * halo.shape[1] * halo.shape[2] * halo.shape[3];
  if (work == 0) return;
  merge_kernel<<<blocks_of_threads_for(work), kThreads, 0, stream_of(queue)>>>(sums, halo);
  check(cudaGetLastError(), "merge_kernel", queue.device);
}

template <typename T>
void labels(const Queue& queue, const View<const float>& sums, const View<T>& out, bool threshold) {
  const DeviceGuard guard(queue.device);
  const index_t work = sums.shape[1] * sums.shape[2] * sums.shape[3];
  if (work == 0) return;
  labels_kernel<<<blocks_of_threads_for(work), kThreads, 0, stream_of(queue)>>>(sums, out, threshold);
  check(cudaGetLastError(), "labels_kernel", queue.device);
}

template <typename T>
void probabilities(const Queue& queue, const View<const float>& sums, const View<T>& out, Activation activation) {
  const DeviceGuard guard(queue.device);
  const index_t work = sums.shape[1] * sums.shape[2] * sums.shape[3];
  if (work == 0) return;
  probabilities_kernel<<<blocks_of_threads_for(work), kThreads, 0, stream_of(queue)>>>(sums, out, activation);
  check(cudaGetLastError(), "probabilities_kernel", queue.device);
}

#define HALO_INSTANTIATE(T)                                                                                      \
  template void add_batch<T>(const Queue&, const View<float>&, const Batch<T>&, const std::vector<Placement>&,   \
                             const std::vector<float>&);
HALO_INSTANTIATE(float)
HALO_INSTANTIATE(Half)
HALO_INSTANTIATE(BFloat16)
#undef HALO_INSTANTIATE

template void labels<std::uint8_t>(const Queue&, const View<const float>&, const View<std::uint8_t>&, bool);
template void labels<std::uint16_t>(const Queue&, const View<const float>&, const View<std::uint16_t>&, bool);
template void probabilities<std::uint8_t>(const Queue&, const View<const float>&, const View<std::uint8_t>&, Activation);
template void probabilities<float>(const Queue&, const View<const float>&, const View<float>&, Activation);

}  // namespace unet_engine::cuda
