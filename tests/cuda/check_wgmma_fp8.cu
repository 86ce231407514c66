// Measures how exactly wgmma adds products of float8_e4m3fn on compute capability 9.0a: the largest
// error of a sum as a share of the sum of the magnitudes of its terms. After 128 terms, where the
// kernels of fused_experts add to a float32, it may be kFp8AccumulationError; after more terms it
// is printed. Ends with 77 where it cannot run.
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "check_kernels.cuh"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"
#include "tessera/fused_experts.hpp"

namespace {

using namespace tessera::cuda;
using tessera::test::array_of;
using tessera::test::expect_at_most;
using tessera::test::run_on_90a;
using tessera::test::wait_for_kernel;
using Fp8 = __nv_fp8_e4m3;

constexpr int kRows = 64;
constexpr int kColumns = 32;
constexpr int kTerms = 128;  // a line of 128 bytes
constexpr int kTile = (kRows + kColumns) * kTerms;
constexpr int kSums = kRows * kColumns / kWarpgroupThreads;  // of a thread
constexpr int kTrials = 512;                                 // a CTA each

/// Where the 128-byte swizzle puts an element of a tile.
int swizzled(int line, int element) {
  return line * kTerms + ((element / 16) ^ (line % 8)) * 16 + element % 16;
}

/// Multiplies the terms of a tile `repeats` times, adding all. Both tiles of a CTA are swizzled.
__global__ void __launch_bounds__(kWarpgroupThreads)
    multiply(const Fp8* tiles, int repeats, float* sums) {
  __shared__ __align__(1024) Fp8 shared[kTile];
  for (int i = threadIdx.x; i < kTile; i += kWarpgroupThreads) {
    shared[i] = tiles[blockIdx.x * kTile + i];
  }
  fence_async_proxy();
  __syncthreads();
  const std::uint64_t a = tile_descriptor(shared_address(shared));
  const std::uint64_t b = tile_descriptor(shared_address(shared + kRows * kTerms));
  float own[kSums] = {};
  for (int repeat = 0; repeat < repeats; ++repeat) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTerms / (2 * kWgmmaDepth); ++k) {
      wgmma_64<Fp8, kColumns>(a + 2 * k, b + 2 * k, repeat > 0 || k > 0, own);
    }
    wgmma_commit();
    wgmma_wait<0>();
  }
  float* const to = sums + (blockIdx.x * kWarpgroupThreads + threadIdx.x) * kSums;
  for (int i = 0; i < kSums; ++i) to[i] = own[i];
}

using Numbers = std::vector<float>;  // [row or column, term] of a tile

/// Numbers of all magnitudes, or of a normal distribution.
Numbers random_numbers(int trial, std::mt19937_64& random) {
  Numbers numbers(kTile);
  std::normal_distribution<float> normal(0, 16);
  for (float& number : numbers) {
    number = trial % 2 == 0 ? normal(random)
                            : std::ldexp(1 + static_cast<float>(random() % 8) / 8,
                                         static_cast<int>(random() % 17) - 9) *
                                  (random() % 2 == 0 ? 1.F : -1.F);
  }
  return numbers;
}

/// In each sum one term of 2^16, and 127 equal ones that are smaller by factors up to 2^24: what is
/// cut off them is as large a share of the sum as it can be. Signs are equal, or alternate.
Numbers one_large_term(int trial, std::mt19937_64& random) {
  Numbers numbers(kTile);
  const int large = static_cast<int>(random() % kTerms);
  const int exponent = static_cast<int>(random() % 13) - 4;  // of the small terms' first factors
  const float mantissa = 1 + static_cast<float>(random() % 8) / 8;
  for (int i = 0; i < kTile; ++i) {
    const int line = i / kTerms;
    const float sign = trial % 2 == 0 && line < kRows && i % 2 == 0 ? -1.F : 1.F;
    numbers[i] = i % kTerms == large ? 256.F
                 : line < kRows      ? sign * std::ldexp(mantissa, -exponent)
                                     : std::ldexp(1.F, -(line % 8));
  }
  return numbers;
}

/// The largest error of the sums of all trials.
template <typename Make>
double largest_error(const Make& make, int repeats) {
  std::mt19937_64 random(1);
  const auto tiles = array_of(std::vector<Fp8>(std::size_t{kTrials} * kTile));
  const auto sums = array_of(std::vector<float>(std::size_t{kTrials} * kRows * kColumns));
  for (int trial = 0; trial < kTrials; ++trial) {
    const Numbers numbers = make(trial, random);
    for (int i = 0; i < kTile; ++i) {
      tiles[std::size_t{kTile} * trial + swizzled(i / kTerms, i % kTerms)] = Fp8(numbers[i]);
    }
  }
  multiply<<<kTrials, kWarpgroupThreads>>>(tiles.get(), repeats, sums.get());
  wait_for_kernel("products");
  double largest = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const Fp8* const tile = tiles.get() + std::size_t{kTile} * trial;
    for (int i = 0; i < kRows * kColumns; ++i) {
      const int row = i / kColumns;
      const int column = i % kColumns;
      const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const int at = thread * kSums + column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
      double sum = 0;  // exactly: products of four bits each, of a range of 36 bits
      double magnitudes = 0;
      for (int k = 0; k < kTerms; ++k) {
        const double term = static_cast<double>(static_cast<float>(tile[swizzled(row, k)])) *
                            static_cast<float>(tile[swizzled(kRows + column, k)]);
        sum += term;
        magnitudes += std::abs(term);
      }
      const double found = sums[std::size_t{kRows} * kColumns * trial + at];
      largest = std::max(largest, std::abs(found / repeats - sum) / magnitudes);
    }
  }
  return largest;
}

template <typename Make>
void measure(const char* name, const Make& make) {
  for (const int repeats : {1, 8, 56}) {
    const double error = largest_error(make, repeats);
    std::printf("%s, %d terms: error %.3g of the magnitudes, 2^%.2f\n", name, repeats * kTerms,
                error, std::log2(error));
    if (repeats == 1) expect_at_most(error, tessera::kFp8AccumulationError, name);
  }
}

}  // namespace

int main() {
  return run_on_90a([] {
    std::printf("bound after %d terms: %.3g\n", kTerms, tessera::kFp8AccumulationError);
    measure("random numbers", random_numbers);
    measure("one large term", one_large_term);
  });
}
