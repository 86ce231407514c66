// Checks what the kernels for compute capability 9.0a are made of, element by element: boxes that
// the copy engine copies, arrivals of cp.async, what the CTAs of a cluster send each other,
// products by wgmma. Ends with 77 where it cannot run.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/parts/cluster.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"
#include "device_buffer.hpp"

namespace {

using namespace tessera::cuda;
using tessera::test::require;

constexpr int kLine = 64;  // elements of 128 bytes, in words of 8

long num_checked = 0;
long num_failed = 0;

void expect(double found, double expected, const std::string& what, int row, int column) {
  ++num_checked;
  if (found == expected || ++num_failed > 20) return;  // the first will do
  std::fprintf(stderr, "FAILED %s (%d, %d): expected %g, got %g\n", what.c_str(), row, column,
               expected, found);
}

/// Where the 128-byte swizzle puts an element of a tile.
int swizzled(int line, int element) {
  return line * kLine + ((element / 8) ^ (line % 8)) * 8 + element % 8;
}

/// An array that host and device share.
template <typename T>
using Array = std::unique_ptr<T[], decltype(&cudaFree)>;
template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  T* memory = nullptr;
  require(cudaMallocManaged(&memory, values.size() * sizeof(T)), "cudaMallocManaged");
  std::copy(values.begin(), values.end(), memory);
  return Array<T>(memory, &cudaFree);
}

/// Waits for the kernel that was launched last.
void wait_for_kernel(const std::string& what) {
  require(cudaGetLastError(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
}

/// Launches clusters of two CTAs, which only such a launch lets reach each other.
template <typename... Parameters, typename... Args>
void run_pairs(const std::string& what, int num_clusters, int num_threads,
               void (*kernel)(Parameters...), Args... args) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = 2 * num_clusters;
  config.blockDim = num_threads;
  config.attrs = &cluster;
  config.numAttrs = 1;
  require(cudaLaunchKernelEx(&config, kernel, args...), what.c_str());
  wait_for_kernel(what);
}

constexpr int kBoxLines = 16;
constexpr std::uint32_t kBoxBytes = kBoxLines * kLine * sizeof(std::uint16_t);
constexpr int kTileElements = 2 * kBoxLines * kLine;
constexpr int kTileThreads = kTileElements / 2;
constexpr std::uint16_t kPoison = 0xa5a5;

/// Copies a box into the first half of a tile; each thread then writes two elements to `found`.
__global__ void copy_one_box(const __grid_constant__ CUtensorMap map, int num_axes, int4 at,
                             ushort2* found) {
  __shared__ __align__(1024) ushort2 tile[kTileThreads];
  __shared__ std::uint64_t barrier_memory;
  const std::uint32_t barrier = shared_address(&barrier_memory);
  tile[threadIdx.x] = {kPoison, kPoison};
  fence_async_proxy();
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    init_barrier(barrier, 1);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, kBoxBytes);
    if (num_axes == 2) copy_box(shared_address(tile), &map, barrier, at.x, at.y);
    if (num_axes == 4) copy_box(shared_address(tile), &map, barrier, at.x, at.y, at.z, at.w);
  }
  wait(barrier, 0);
  found[threadIdx.x] = tile[threadIdx.x];
}

/// A tensor whose numbers say where they lie, those of gaps too.
struct Numbers {
  Numbers(const std::string& name, const std::vector<TensorMapAxis>& tensor_axes)
      : axes(tensor_axes), numbers(axes.back().length * axes.back().stride) {
    std::iota(numbers.begin(), numbers.end(), std::uint16_t{1});
    memory = array_of(numbers);
    const bool is_encoded = encode_tensor_map(memory.get(), true, axes, &map) == CUDA_SUCCESS;
    require(is_encoded ? cudaSuccess : cudaErrorInvalidValue, (name + ", map").c_str());
  }

  /// Element i of the box at `at`.
  int element(const int4& at, int i) const {
    const int coordinates[] = {at.x + i % kLine, at.y + i / kLine, at.z, at.w};
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      if (coordinates[axis] < 0 || coordinates[axis] >= axes[axis].length) return 0;
      offset += coordinates[axis] * axes[axis].stride;
    }
    return numbers[offset];
  }

  std::vector<TensorMapAxis> axes;
  std::vector<std::uint16_t> numbers;
  Array<std::uint16_t> memory{nullptr, &cudaFree};
  CUtensorMap map;
};

/// Every element of boxes of a tensor.
void check_boxes(const std::string& name, const std::vector<TensorMapAxis>& axes,
                 const std::vector<int4>& places) {
  const Numbers tensor(name, axes);
  for (const int4& at : places) {
    const std::string what = name + ", box " + std::to_string(&at - places.data());
    const Array<ushort2> tile = array_of(std::vector<ushort2>(kTileThreads));
    copy_one_box<<<1, kTileThreads>>>(tensor.map, static_cast<int>(axes.size()), at, tile.get());
    wait_for_kernel(what);
    const auto* const found = reinterpret_cast<const std::uint16_t*>(tile.get());
    for (int i = 0; i < kTileElements; ++i) {
      expect(found[swizzled(i / kLine, i % kLine)],
             i < kTileElements / 2 ? tensor.element(at, i) : kPoison, what, i / kLine, i % kLine);
    }
  }
}

/// CTA r of a cluster copies a box to half r of the tiles of the CTAs in its mask; each thread then
/// writes two elements of its CTA's tile to `found`.
__global__ void copy_boxes_to_ctas(const __grid_constant__ CUtensorMap map, int4 first, int4 second,
                                   ushort2 masks, ushort2* found) {
  __shared__ __align__(1024) ushort2 tile[kTileThreads];
  __shared__ std::uint64_t barrier_memory;
  const std::uint32_t barrier = shared_address(&barrier_memory);
  const std::uint32_t rank = rank_in_cluster();
  tile[threadIdx.x] = {kPoison, kPoison};
  fence_async_proxy();
  if (threadIdx.x == 0) {
    init_barrier(barrier, 1);
    fence_barriers();
  }
  synchronize_cluster();
  if (threadIdx.x == 0) {
    const std::uint32_t num_boxes = (masks.x >> rank & 1) + (masks.y >> rank & 1);
    arrive_and_expect(barrier, num_boxes * kBoxBytes);
    const int4 at = rank == 0 ? first : second;
    copy_box_to_ctas(shared_address(tile) + rank * kBoxBytes, &map, barrier,
                     rank == 0 ? masks.x : masks.y, at.x, at.y, at.z, at.w);
  }
  wait(barrier, 0);
  found[rank * kTileThreads + threadIdx.x] = tile[threadIdx.x];
  synchronize_cluster();
}

/// Every element of the tiles of both CTAs.
void check_boxes_of_ctas(const std::vector<TensorMapAxis>& axes, const int4& first,
                         const int4& second) {
  const Numbers tensor("boxes of a cluster", axes);
  // To both CTAs, to the other one, to both and only itself.
  for (const ushort2 masks : {ushort2{3, 3}, ushort2{2, 1}, ushort2{3, 2}}) {
    const Array<ushort2> tiles = array_of(std::vector<ushort2>(2 * kTileThreads));
    const std::string name =
        "boxes to " + std::to_string(masks.x) + " and " + std::to_string(masks.y);
    run_pairs(name, 1, kTileThreads, copy_boxes_to_ctas, tensor.map, first, second, masks,
              tiles.get());
    for (int rank = 0; rank < 2; ++rank) {
      const auto* const found =
          reinterpret_cast<const std::uint16_t*>(tiles.get() + rank * kTileThreads);
      for (int i = 0; i < kTileElements; ++i) {
        const bool is_second = i >= kTileElements / 2;
        const bool is_copied = (is_second ? masks.y : masks.x) >> rank & 1;
        const int copied = tensor.element(is_second ? second : first, i % (kTileElements / 2));
        expect(found[swizzled(i / kLine, i % kLine)], is_copied ? copied : kPoison,
               name + ", CTA " + std::to_string(rank), i / kLine, i % kLine);
      }
    }
  }
}

constexpr int kRounds = 5;

/// A warpgroup copies words, again and again to the same place; another writes them to `found`.
__global__ void gather(const uint4* words, uint4* found) {
  __shared__ uint4 copied[kWarpgroupThreads];
  __shared__ std::uint64_t barriers[2];
  const std::uint32_t full = shared_address(&barriers[0]);
  const std::uint32_t empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    for (const auto barrier : {full, empty}) init_barrier(barrier, kWarpgroupThreads);
    fence_barriers();
  }
  __syncthreads();
  const std::uint32_t i = threadIdx.x % kWarpgroupThreads;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const std::uint32_t parity = round % 2;
    if (threadIdx.x < kWarpgroupThreads) {
      wait(empty, parity ^ 1);
      copy_word_async(shared_address(&copied[i]), &words[round * kWarpgroupThreads + i],
                      i % kRounds != round);
      arrive_after_copies(full);
    } else {
      wait(full, parity);
      found[round * kWarpgroupThreads + i] = copied[i];
      arrive(empty);
    }
  }
}

void check_gathering() {
  std::vector<uint4> numbers(kRounds * kWarpgroupThreads);
  for (unsigned i = 0; i < numbers.size(); ++i) numbers[i] = {i + 1, ~i, 2 * i + 1, 3 * i + 1};
  const Array<uint4> words = array_of(numbers);
  const Array<uint4> found = array_of(std::vector(numbers.size(), make_uint4(0, ~0U, 0, ~0U)));
  gather<<<1, 2 * kWarpgroupThreads>>>(words.get(), found.get());
  wait_for_kernel("cp.async");
  for (int i = 0; i < 4 * kRounds * kWarpgroupThreads; ++i) {
    const int round = i / 4 / kWarpgroupThreads;
    const bool is_given = i / 4 % kWarpgroupThreads % kRounds != round;
    expect((&found[i / 4].x)[i % 4], is_given ? (&numbers[i / 4].x)[i % 4] : 0, "cp.async", round,
           i % (4 * kWarpgroupThreads));
  }
}

constexpr int kSenders = 64;
constexpr int kClusters = 3;

/// The threads of both CTAs of each cluster send a word to both of them, again and again to the
/// same places, and write the words that their CTA has got to `found`.
__global__ void exchange(const int4* words, int4* found) {
  __shared__ int4 received[2][kSenders];
  __shared__ std::uint64_t barriers[2];
  const std::uint32_t full = shared_address(&barriers[0]);
  const std::uint32_t empty = shared_address(&barriers[1]);
  const std::uint32_t rank = rank_in_cluster();
  const std::uint32_t i = threadIdx.x;
  if (i == 0) {
    init_barrier(full, 2);
    init_barrier(empty, 2 * kSenders);
    fence_barriers();
  }
  synchronize_cluster();
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const std::uint32_t cta = round * gridDim.x + blockIdx.x;
    const std::uint32_t parity = round % 2;
    wait(empty, parity ^ 1);
    for (std::uint32_t to = 0; to < 2; ++to) {
      if (i == 0) arrive_and_expect_in_cluster(in_cta(full, to), sizeof(received[rank]));
      store_in_cluster(in_cta(shared_address(&received[rank][i]), to), words[cta * kSenders + i],
                       in_cta(full, to));
    }
    wait(full, parity);
    for (std::uint32_t from = 0; from < 2; ++from) {
      found[(2 * cta + from) * kSenders + i] = received[from][i];
      arrive_in_cluster(in_cta(empty, from));
    }
  }
  synchronize_cluster();
}

void check_exchange() {
  const std::string what = "words of a cluster";
  std::vector<int4> numbers(kRounds * 2 * kClusters * kSenders);
  for (int i = 0; i < static_cast<int>(numbers.size()); ++i) {
    numbers[i] = {i + 1, ~i, 2 * i + 1, 3 * i + 1};
  }
  const Array<int4> words = array_of(numbers);
  const Array<int4> found = array_of(std::vector<int4>(2 * numbers.size()));
  run_pairs(what, kClusters, kSenders, exchange, words.get(), found.get());
  for (int i = 0; i < 2 * static_cast<int>(numbers.size()); ++i) {
    const int cta = i / kSenders / 2;
    const int sender = cta / 2 * 2 + i / kSenders % 2;
    for (int j = 0; j < 4; ++j) {
      expect((&found[i].x)[j], (&numbers[sender * kSenders + i % kSenders].x)[j],
             what + " from CTA " + std::to_string(sender), cta, 4 * (i % kSenders) + j);
    }
  }
}

constexpr int kRows = 64;
constexpr int kColumns = 256;
constexpr int kTerms = (kRows + kColumns) * kLine;
constexpr int kSums = kRows * kColumns / kWarpgroupThreads;

/// Multiplies terms kWgmmaDepth * first_step ... of two tiles that are swizzled already. Thread t
/// has its sums at kSums t of `sums`, before and after.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kWarpgroupThreads)
    multiply(const T* tiles, int first_step, bool adds, float* sums) {
  __shared__ __align__(1024) T shared[kTerms];
  for (int i = threadIdx.x; i < kTerms; i += kWarpgroupThreads) shared[i] = tiles[i];
  float own[kSums];
  for (int i = 0; i < kSums; ++i) own[i] = sums[threadIdx.x * kSums + i];
  fence_async_proxy();
  __syncthreads();
  const std::uint64_t a = tile_descriptor(shared_address(shared)) + 2 * first_step;
  const std::uint64_t b = tile_descriptor(shared_address(shared + kRows * kLine)) + 2 * first_step;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma_64x256<T>(a + 2 * k, b + 2 * k, adds || k > 0, own);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kSums; ++i) sums[threadIdx.x * kSums + i] = own[i];
}

/// Small integers, whose sums are exact in every order.
int term(int row, int k) { return (row * 7 + k * 3 + row * k % 5) % 9 - 4; }

template <typename T, int kSteps>
void check_product(const std::string& type, int first_step) {
  std::vector<T> numbers(kTerms);
  // The second tile begins at a multiple of eight lines, so that both are swizzled as one.
  for (int i = 0; i < kTerms; ++i) {
    numbers[swizzled(i / kLine, i % kLine)] = static_cast<float>(term(i / kLine, i % kLine));
  }
  const Array<T> tiles = array_of(numbers);
  std::vector<float> before(kRows * kColumns);
  std::iota(before.begin(), before.end(), -1000.F);
  for (const bool adds : {false, true}) {
    const std::string what = "wgmma of " + type + (adds ? ", adding from " : ", from ") +
                             std::to_string(first_step) + ", " + std::to_string(kSteps);
    const Array<float> found = array_of(before);
    multiply<T, kSteps><<<1, kWarpgroupThreads>>>(tiles.get(), first_step, adds, found.get());
    wait_for_kernel(what);
    for (int i = 0; i < kRows * kColumns; ++i) {
      const int row = i / kColumns;
      const int column = i % kColumns;
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const int at = thread * kSums + column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
      int sum = adds ? static_cast<int>(before[at]) : 0;
      for (int k = kWgmmaDepth * first_step; k < kWgmmaDepth * (first_step + kSteps); ++k) {
        sum += term(row, k) * term(kRows + column, k);
      }
      expect(found[at], sum, what, row, column);
    }
  }
}

template <typename T>
void check_products(const std::string& type) {
  for (const int step : {0, 1, 2, 3}) check_product<T, 1>(type, step);
  for (const int step : {0, 2}) check_product<T, 2>(type, step);
  check_product<T, 4>(type, 0);
}

}  // namespace

int main() {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9 ||
      properties.minor != 0) {
    std::puts("skipped: device 0 is not one of compute capability 9.0");
    return 77;
  }
  const auto at = [](int x, int y) { return int4{x, y, 0, 0}; };
  // Rows with gaps between them; per expert, rows of two kinds in turns.
  check_boxes("rows", {{72, 1, kLine}, {20, 80, kBoxLines}},
              {at(0, 0), at(64, 0), at(0, 16), at(64, 16), at(-8, -2), at(128, 0), at(0, -16)});
  const std::vector<TensorMapAxis> kinds{
      {72, 1, kLine}, {20, 160, kBoxLines}, {2, 80, 1}, {2, 3216, 1}};
  check_boxes(
      "kinds", kinds,
      {{0, 0, 0, 0}, {64, 16, 1, 1}, {0, 8, 1, 0}, {0, 0, 0, 1}, {0, 0, 2, 0}, {0, 0, 0, 2}});
  check_gathering();
  check_boxes_of_ctas(kinds, {0, 0, 1, 0}, {0, 8, 0, 1});
  check_exchange();
  check_products<__half>("fp16");
  check_products<__nv_bfloat16>("bf16");
  std::printf("%ld elements checked, %ld wrong\n", num_checked, num_failed);
  return num_failed == 0 ? 0 : 1;
}
