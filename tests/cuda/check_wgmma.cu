// Checks products by wgmma in 16 bits on compute capability 9.0a, element by element, and that
// warpgroups exchange registers. Ends with 77 where it cannot run.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "check_kernels.cuh"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"

namespace {

using namespace tessera::cuda;
using namespace tessera::test;

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
  check_products<T, 48>(type);
  check_products<T, 128>(type);
  check_products<T, 256>(type);
}

/// Registers of a thread of the warpgroup that gives some up, and of the two that take them. The
/// kernel starts with the mean.
constexpr int kFewRegisters = 24;
constexpr int kManyRegisters = 240;
constexpr int kRegistersAtFirst = (kFewRegisters + 2 * kManyRegisters) / 3;
constexpr int kSharingThreads = 3 * kWarpgroupThreads;
constexpr int kSharingCtas = 512;  // each multiprocessor runs several, one after the other
constexpr int kFewNumbers = 8;
constexpr int kManyNumbers = 200;  // more than registers at first
constexpr int kMixingRounds = 20;

/// Mixes numbers, all of which it needs at once, and adds them up.
template <int kNumbers>
__host__ __device__ __forceinline__ std::uint32_t mixed(std::uint32_t seed) {
  std::uint32_t numbers[kNumbers];
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) numbers[i] = (seed ^ i) * 0x9e3779b9U;
#pragma unroll 1
  for (int round = 0; round < kMixingRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) numbers[i] = 5 * numbers[i] + numbers[(i + 1) % kNumbers];
  }
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) sum = 3 * sum + numbers[i];
  return sum;
}

__global__ void __launch_bounds__(kSharingThreads, 1) share_registers(std::uint32_t* found) {
  const std::uint32_t thread = blockIdx.x * kSharingThreads + threadIdx.x;
  if (threadIdx.x < kWarpgroupThreads) {
    decrease_registers<kFewRegisters>();
    found[thread] = mixed<kFewNumbers>(thread);
  } else {
    increase_registers<kManyRegisters>();
    found[thread] = mixed<kManyNumbers>(thread);
  }
}

void check_registers() {
  cudaFuncAttributes attributes{};
  require(cudaFuncGetAttributes(&attributes, share_registers), "registers");
  expect(static_cast<double>(attributes.localSizeBytes), 0, "bytes beside registers", 0, 0);
  expect(attributes.numRegs, kRegistersAtFirst, "registers at first", 0, 0);
  if (attributes.numRegs < kRegistersAtFirst) return;  // it would wait for ever
  const Array<std::uint32_t> found =
      array_of(std::vector<std::uint32_t>(kSharingCtas * kSharingThreads));
  share_registers<<<kSharingCtas, kSharingThreads>>>(found.get());
  wait_for_kernel("registers");
  for (int i = 0; i < kSharingCtas * kSharingThreads; ++i) {
    const int of_cta = i % kSharingThreads;
    expect(found[i], of_cta < kWarpgroupThreads ? mixed<kFewNumbers>(i) : mixed<kManyNumbers>(i),
           "registers", i / kSharingThreads, of_cta);
  }
}

}  // namespace

int main() {
  return run_on_90a([] {
    check_all_products<__half>("fp16");
    check_all_products<__nv_bfloat16>("bf16");
    check_registers();
  });
}
