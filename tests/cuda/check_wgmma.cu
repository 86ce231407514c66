// Checks what the kernels for compute capability 9.0a are made of, element by element: boxes that
// the copy engine copies, arrivals of cp.async, products by wgmma. Ends with 77 where it cannot
// run.
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

constexpr int kBoxLines = 16;
constexpr std::uint32_t kBoxBytes = kBoxLines * kLine * sizeof(std::uint16_t);
constexpr int kTileElements = 2 * kBoxLines * kLine;
constexpr int kTileThreads = kTileElements / 2;
constexpr std::uint16_t kPoison = 0xa5a5;

/// The coordinates of a box, innermost first.
struct Place {
  int x, y, z = 0, w = 0, v = 0;
};

/// Copies a box into the first half of a tile; each thread then writes two elements to `found`.
__global__ void copy_one_box(const __grid_constant__ CUtensorMap map, int num_axes, Place at,
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
    if (num_axes == 5) copy_box(shared_address(tile), &map, barrier, at.x, at.y, at.z, at.w, at.v);
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
    const bool is_encoded = encode_tensor_map(memory.get(), 2, axes, &map) == CUDA_SUCCESS;
    require(is_encoded ? cudaSuccess : cudaErrorInvalidValue, (name + ", map").c_str());
  }

  /// Element i of the box at `at`.
  int element(const Place& at, int i) const {
    const int first[] = {at.x, at.y, at.z, at.w, at.v};
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      const int coordinate = first[axis] + i % axes[axis].box;
      i /= axes[axis].box;
      if (coordinate < 0 || coordinate >= axes[axis].length) return 0;
      offset += coordinate * axes[axis].stride;
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
                 const std::vector<Place>& places) {
  const Numbers tensor(name, axes);
  for (const Place& at : places) {
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

constexpr int kRows = 64;
template <int kColumns>
constexpr int kTerms = (kRows + kColumns) * kLine;
/// Of a thread.
template <int kColumns>
constexpr int kSums = kRows* kColumns / kWarpgroupThreads;

/// Multiplies terms kWgmmaDepth * first_step ... of two tiles that are swizzled already. Thread t
/// has its sums at kSums<kColumns> t of `sums`, before and after.
template <typename T, int kColumns, int kSteps>
__global__ void __launch_bounds__(kWarpgroupThreads)
    multiply(const T* tiles, int first_step, bool adds, float* sums) {
  __shared__ __align__(1024) T shared[kTerms<kColumns>];
  for (int i = threadIdx.x; i < kTerms<kColumns>; i += kWarpgroupThreads) shared[i] = tiles[i];
  float own[kSums<kColumns>];
  for (int i = 0; i < kSums<kColumns>; ++i) own[i] = sums[threadIdx.x * kSums<kColumns> + i];
  fence_async_proxy();
  __syncthreads();
  const std::uint64_t a = tile_descriptor(shared_address(shared)) + 2 * first_step;
  const std::uint64_t b = tile_descriptor(shared_address(shared + kRows * kLine)) + 2 * first_step;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma_64<T, kColumns>(a + 2 * k, b + 2 * k, adds || k > 0, own);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kSums<kColumns>; ++i) sums[threadIdx.x * kSums<kColumns> + i] = own[i];
}

/// Small integers, whose sums are exact in every order.
int term(int row, int k) { return (row * 7 + k * 3 + row * k % 5) % 9 - 4; }

template <typename T, int kColumns, int kSteps>
void check_product(const std::string& type, int first_step) {
  std::vector<T> numbers(kTerms<kColumns>);
  // The second tile begins at a multiple of eight lines, so that both are swizzled as one.
  for (int i = 0; i < kTerms<kColumns>; ++i) {
    numbers[swizzled(i / kLine, i % kLine)] = static_cast<float>(term(i / kLine, i % kLine));
  }
  const Array<T> tiles = array_of(numbers);
  std::vector<float> before(kRows * kColumns);
  std::iota(before.begin(), before.end(), -1000.F);
  for (const bool adds : {false, true}) {
    const std::string what = "wgmma of " + std::to_string(kColumns) + " columns in " + type +
                             (adds ? ", adding from " : ", from ") + std::to_string(first_step) +
                             ", " + std::to_string(kSteps);
    const Array<float> found = array_of(before);
    multiply<T, kColumns, kSteps>
        <<<1, kWarpgroupThreads>>>(tiles.get(), first_step, adds, found.get());
    wait_for_kernel(what);
    for (int i = 0; i < kRows * kColumns; ++i) {
      const int row = i / kColumns;
      const int column = i % kColumns;
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const int at = thread * kSums<kColumns> + column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
      int sum = adds ? static_cast<int>(before[at]) : 0;
      for (int k = kWgmmaDepth * first_step; k < kWgmmaDepth * (first_step + kSteps); ++k) {
        sum += term(row, k) * term(kRows + column, k);
      }
      expect(found[at], sum, what, row, column);
    }
  }
}

template <typename T, int kColumns>
void check_products(const std::string& type) {
  for (const int step : {0, 1, 2, 3}) check_product<T, kColumns, 1>(type, step);
  for (const int step : {0, 2}) check_product<T, kColumns, 2>(type, step);
  check_product<T, kColumns, 4>(type, 0);
}

template <typename T>
void check_all_products(const std::string& type) {
  check_products<T, 8>(type);
  check_products<T, 16>(type);
  check_products<T, 32>(type);
  check_products<T, 256>(type);
}

}  // namespace

int main() {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9 ||
      properties.minor != 0) {
    std::puts("skipped: device 0 is not one of compute capability 9.0");
    return 77;
  }
  const auto at = [](int x, int y) { return Place{x, y}; };
  // Rows with gaps between them; per expert, rows of two kinds in turns.
  check_boxes("rows", {{72, 1, kLine}, {20, 80, kBoxLines}},
              {at(0, 0), at(64, 0), at(0, 16), at(64, 16), at(-8, -2), at(128, 0), at(0, -16)});
  const std::vector<TensorMapAxis> kinds{
      {72, 1, kLine}, {20, 160, kBoxLines}, {2, 80, 1}, {2, 3216, 1}};
  check_boxes(
      "kinds", kinds,
      {{0, 0, 0, 0}, {64, 16, 1, 1}, {0, 8, 1, 0}, {0, 0, 0, 1}, {0, 0, 2, 0}, {0, 0, 0, 2}});
  // Rows of two kinds in turns of eight, and runs of eight of one kind, of three runs per expert.
  const std::vector<Place> runs{
      {0, 0, 0, 0, 0}, {64, 0, 0, 2, 1}, {0, 0, 0, 1, 1}, {0, 0, 0, 3, 0}, {0, 0, 0, -1, 1}};
  check_boxes("runs in turns",
              {{72, 1, kLine}, {8, 80, 8}, {2, 1920, 2}, {3, 640, 1}, {2, 3848, 1}}, runs);
  check_boxes("runs", {{72, 1, kLine}, {8, 80, 8}, {1, 1920, 1}, {3, 640, 2}, {2, 1928, 1}}, runs);
  check_gathering();
  check_all_products<__half>("fp16");
  check_all_products<__nv_bfloat16>("bf16");
  std::printf("%ld elements checked, %ld wrong\n", num_checked, num_failed);
  return num_failed == 0 ? 0 : 1;
}
