// Checks that the shape of wgmma's tiles and the exchange of its operands change no bit of a sum in
// 16 bits on compute capability 9.0a: products of random real numbers by all shapes that the
// kernels use. Ends with 77 where it cannot run.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check_kernels.cuh"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"

namespace {

using namespace tessera::cuda;
using namespace tessera::test;

constexpr int kOperandRows = 64;  // of the first operand of a wgmma
constexpr int kMaxColumns = 256;  // the most rows of the second
// Of the matrices: multiples of all of these, also where the operands are exchanged.
constexpr int kRows = 192;
constexpr int kColumns = 768;
constexpr int kTrials = 6;
constexpr int kMaxDepth = 7168;
constexpr int kProducts = kRows * kColumns;  // of a trial

/// A matrix of each trial: [trial, row, kMaxDepth].
template <typename T>
struct Matrix {
  const T* numbers;
  int num_rows;
  int stride;  ///< between products of a row and of the next
};

/// Copies terms of rows to the lines of a tile.
template <typename T>
__device__ __forceinline__ void copy_lines(const T* rows, int num_lines, T* tile) {
  constexpr int kPerWord = sizeof(uint4) / sizeof(T);
  constexpr int kWordsPerLine = kLine / kPerWord;
  for (int i = threadIdx.x; i < num_lines * kWordsPerLine; i += kWarpgroupThreads) {
    const int line = i / kWordsPerLine;
    const int term = i % kWordsPerLine * kPerWord;
    *reinterpret_cast<uint4*>(tile + swizzled(line, term)) =
        *reinterpret_cast<const uint4*>(rows + std::int64_t{line} * kMaxDepth + term);
  }
}

/// The products of 64 rows of `left` and kTileColumns rows of `right` for each CTA: y counts the
/// former, x the latter, and z the trials.
template <typename T, int kTileColumns>
__global__ void __launch_bounds__(kWarpgroupThreads)
    multiply(Matrix<T> left, Matrix<T> right, int depth, float* products) {
  __shared__ __align__(1024) T tiles[(kOperandRows + kTileColumns) * kLine];
  T* const right_tile = tiles + kOperandRows * kLine;
  const int trial = blockIdx.z;
  const int first_left = blockIdx.y * kOperandRows;
  const int first_right = blockIdx.x * kTileColumns;
  const T* const left_rows =
      left.numbers + (std::int64_t{trial} * left.num_rows + first_left) * kMaxDepth;
  const T* const right_rows =
      right.numbers + (std::int64_t{trial} * right.num_rows + first_right) * kMaxDepth;
  const std::uint64_t a = tile_descriptor(shared_address(tiles));
  const std::uint64_t b = tile_descriptor(shared_address(right_tile));
  float sums[kTileColumns / 2] = {};
  for (int begin = 0; begin < depth; begin += kLine) {
    __syncthreads();
    copy_lines(left_rows + begin, kOperandRows, tiles);
    copy_lines(right_rows + begin, kTileColumns, right_tile);
    fence_async_proxy();
    __syncthreads();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kLine / kWgmmaDepth; ++k) {
      wgmma_64<T, kTileColumns>(a + 2 * k, b + 2 * k, begin > 0 || k > 0, sums);
    }
    wgmma_commit();
    wgmma_wait<0>();
  }
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  float* const to = products + std::int64_t{trial} * kProducts;
#pragma unroll
  for (int i = 0; i < kTileColumns / 2; ++i) {
    const int left_row = first_left + 16 * warp + lane / 4 + i / 2 % 2 * 8;
    const int right_row = first_right + i / 4 * 8 + lane % 4 * 2 + i % 2;
    to[left_row * left.stride + right_row * right.stride] = sums[i];
  }
}

/// The products of all rows, wherever a kernel computes them.
template <typename T, int kTileColumns>
Array<float> products_of(const Matrix<T>& left, const Matrix<T>& right, int depth) {
  Array<float> products =
      array_of(std::vector<float>(kTrials * kProducts, std::numeric_limits<float>::quiet_NaN()));
  const dim3 ctas(right.num_rows / kTileColumns, left.num_rows / kOperandRows, kTrials);
  multiply<T, kTileColumns><<<ctas, kWarpgroupThreads>>>(left, right, depth, products.get());
  wait_for_kernel("products");
  return products;
}

/// Of a normal distribution, of many magnitudes, or positive, by the trial.
std::vector<float> random_numbers(int num_rows, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-8, 8);
  const std::size_t of_trial = std::size_t{kMaxDepth} * num_rows;
  std::vector<float> numbers(kTrials * of_trial);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::size_t kind = i / of_trial % 3;
    numbers[i] = normal(random);
    if (kind == 1) numbers[i] = std::ldexp(numbers[i], exponent(random));
    if (kind == 2) numbers[i] = std::abs(numbers[i]);
  }
  return numbers;
}

/// The operands in a type: rows of `a` make rows of the products, and rows of `b` columns.
template <typename T>
struct Operands {
  Operands()
      : a_memory(array_of(converted(kRows, 1))), b_memory(array_of(converted(kColumns, 2))) {}

  static std::vector<T> converted(int num_rows, unsigned seed) {
    const std::vector<float> numbers = random_numbers(num_rows, seed);
    return std::vector<T>(numbers.begin(), numbers.end());
  }

  Array<T> a_memory;
  Array<T> b_memory;
  Matrix<T> a{a_memory.get(), kRows, kColumns};
  Matrix<T> b{b_memory.get(), kColumns, 1};
};

/// A product of each row is about what it should be: within the error of sums in float32.
template <typename T>
void check_values(const Operands<T>& operands, int depth, const float* products,
                  const std::string& what) {
  for (int i = 0; i < kTrials * kRows; ++i) {
    const int trial = i / kRows;
    const int row = i % kRows;
    const int column = (37 * row + trial) % kColumns;
    const T* const a = operands.a.numbers + std::int64_t{i} * kMaxDepth;
    const T* const b = operands.b.numbers + (std::int64_t{trial} * kColumns + column) * kMaxDepth;
    double sum = 0;
    double magnitudes = 0;
    for (int k = 0; k < depth; ++k) {
      const double term = static_cast<double>(static_cast<float>(a[k])) * static_cast<float>(b[k]);
      sum += term;
      magnitudes += std::abs(term);
    }
    const double found = products[trial * kProducts + row * kColumns + column];
    const bool is_close = std::abs(found - sum) <= std::ldexp(depth, -22) * magnitudes;
    expect(found, is_close ? found : sum, what + ", value", trial * kRows + row, column);
  }
}

long num_compared = 0;
long num_different = 0;

/// Compares the bits of products by tiles of kTileColumns columns.
template <typename T, int kTileColumns>
void compare(const Matrix<T>& left, const Matrix<T>& right, int depth, const float* expected,
             const std::string& what) {
  const Array<float> found = products_of<T, kTileColumns>(left, right, depth);
  const std::string name = what + ", bits with " + std::to_string(kTileColumns) + " columns";
  const long num_failed_before = num_failed;
  for (int i = 0; i < kTrials * kProducts; ++i) {
    expect(std::bit_cast<std::uint32_t>(found[i]), std::bit_cast<std::uint32_t>(expected[i]), name,
           i / kColumns, i % kColumns);
  }
  num_compared += kTrials * kProducts;
  num_different += num_failed - num_failed_before;
}

template <typename T>
void check_shapes(const std::string& type) {
  const Operands<T> operands;
  const Matrix<T>& a = operands.a;
  const Matrix<T>& b = operands.b;
  for (const int depth : {64, 2048, kMaxDepth}) {
    const std::string what = type + ", " + std::to_string(depth) + " terms";
    const Array<float> products = products_of<T, kMaxColumns>(a, b, depth);
    check_values(operands, depth, products.get(), what);
    compare<T, 8>(a, b, depth, products.get(), what);
    compare<T, 16>(a, b, depth, products.get(), what);
    compare<T, 32>(a, b, depth, products.get(), what);
    compare<T, 48>(a, b, depth, products.get(), what);
    compare<T, 128>(a, b, depth, products.get(), what);
    compare<T, 8>(b, a, depth, products.get(), what + ", exchanged");
    compare<T, 16>(b, a, depth, products.get(), what + ", exchanged");
    compare<T, 32>(b, a, depth, products.get(), what + ", exchanged");
    compare<T, 48>(b, a, depth, products.get(), what + ", exchanged");
  }
}

}  // namespace

int main() {
  return run_on_90a([] {
    check_shapes<__half>("fp16");
    check_shapes<__nv_bfloat16>("bf16");
    std::printf("tile shapes and exchange: %ld of %ld sums differ\n", num_different, num_compared);
  });
}
