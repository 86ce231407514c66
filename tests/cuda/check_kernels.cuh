// What the programs share that check what the kernels for compute capability 9.0a are made of.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "device_buffer.hpp"

namespace tessera::test {

inline long num_checked = 0;
inline long num_failed = 0;

inline void expect(double found, double expected, const std::string& what, int row, int column) {
  ++num_checked;
  if (found == expected || ++num_failed > 20) return;  // the first will do
  std::fprintf(stderr, "FAILED %s (%d, %d): expected %.10g, got %.10g\n", what.c_str(), row, column,
               expected, found);
}

inline void expect_at_most(double found, double bound, const char* what) {
  ++num_checked;
  if (found <= bound) return;
  ++num_failed;
  std::fprintf(stderr, "FAILED %s: expected at most %.10g, got %.10g\n", what, bound, found);
}

inline constexpr int kLine = 64;  // elements of 128 bytes, in words of 8

/// Where the 128-byte swizzle puts an element of a tile.
constexpr int swizzled(int line, int element) {
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
inline void wait_for_kernel(const std::string& what) {
  require(cudaGetLastError(), what.c_str());
  require(cudaDeviceSynchronize(), what.c_str());
}

/// Runs the checks of a program, and returns its exit status: 77 where it cannot run.
template <typename Checks>
int run_on_90a(const Checks& checks) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess || properties.major != 9 ||
      properties.minor != 0) {
    std::puts("skipped: device 0 is not one of compute capability 9.0");
    return 77;
  }
  checks();
  std::printf("%ld elements checked, %ld wrong\n", num_checked, num_failed);
  return num_failed == 0 ? 0 : 1;
}

}  // namespace tessera::test
