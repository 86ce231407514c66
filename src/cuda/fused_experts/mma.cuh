// Copies to shared memory, and products of fragments by tensor cores: PTX of compute capability 8.0
// (PTX ISA, sections "cp.async", "ldmatrix" and "mma.m16n8k16").
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "cuda/parts/fp8.cuh"

namespace tessera::cuda {

/// An address in shared memory as PTX takes it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Starts to copy 16 bytes, past L1; zeros if not `given`, and then `source` is not read. Both
/// addresses are multiples of 16.
__device__ __forceinline__ void copy_word_async(std::uint32_t target, const void* source,
                                                bool given) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(given ? 16 : 0)
               : "memory");
}

/// Starts to copy a number, or to write 0 if there is none. Both addresses are multiples of 4.
__device__ __forceinline__ void copy_float_async(std::uint32_t target, const float* source,
                                                 bool given) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source),
               "r"(given ? 4 : 0)
               : "memory");
}

/// Ends a group of copies, which may be empty.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until all but the last kGroups groups of this thread's copies have arrived. Other threads
/// see them once they have synchronised with this one.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// Loads four 8x8 matrices of 16-bit elements. Lane 8 i + j gives the address of row j of matrix i,
/// a multiple of 16.
__device__ __forceinline__ void load_matrices(std::uint32_t address, std::uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed.
__device__ __forceinline__ void load_transposed(std::uint32_t address,
                                                std::uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

/// sums[16x8] += a[16x16] b[16x8] in float32, or a[16x32] b[32x8] of float8_e4m3fn. Lane l holds
/// rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of the sums.
template <typename T>
__device__ __forceinline__ void multiply_add(const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1, float (&sums)[4]);

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(const std::uint32_t (&a)[4],
                                                            std::uint32_t b0, std::uint32_t b1,
                                                            float (&sums)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<__half>(const std::uint32_t (&a)[4], std::uint32_t b0,
                                                     std::uint32_t b1, float (&sums)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// float16 holds all values of float8_e4m3fn, so that products and sums are as exact as of those.
/// A register has four elements of a row or a column, all of which lie in the same word in `a` and
/// `b`: their order does not matter.
template <>
__device__ __forceinline__ void multiply_add<__nv_fp8_e4m3>(const std::uint32_t (&a)[4],
                                                            std::uint32_t b0, std::uint32_t b1,
                                                            float (&sums)[4]) {
#pragma unroll
  for (int word = 0; word < 2; ++word) {
    const Halves upper = halves_of(a[2 * word]);
    const Halves lower = halves_of(a[2 * word + 1]);
    const Halves columns = halves_of(word == 0 ? b0 : b1);
    const std::uint32_t converted[4] = {upper.of[0], lower.of[0], upper.of[1], lower.of[1]};
    multiply_add<__half>(converted, columns.of[0], columns.of[1], sums);
  }
}

}  // namespace tessera::cuda
