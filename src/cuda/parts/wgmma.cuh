// Products of tiles in shared memory by the tensor cores of compute capability 9.0a (PTX ISA,
// "wgmma.mma_async"). The four warps of a warpgroup execute each of these functions together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace tessera::cuda {

inline constexpr int kWarpgroupThreads = 128;

/// Terms of each sum of one wgmma in 16 bits: 32 bytes of a line. In float8_e4m3fn they are 32.
inline constexpr int kWgmmaDepth = 16;

/// Describes a tile with a line of 128 bytes along the sum for each row. The words of 16 bytes of a
/// line have changed places by an exclusive or with the number of the line, as the copy engine's
/// 128-byte swizzle does. `address` is a multiple of 1024, plus 32 for the terms of each wgmma.
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightLines = std::uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightLines | (address & 0x3FFFFU) / 16;
}

/// Orders this warpgroup's accesses to registers before the wgmma that follow: needed before the
/// first, and again once sums were read or written. What threads wrote to shared memory needs
/// fence_async_proxy.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Ends a group of wgmma.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until all but the last kGroups groups have ended.
template <int kGroups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

/// Gives up registers of this warpgroup's threads, or takes some that others of the CTA gave up,
/// until each thread has kRegisters: a multiple of 8 from 24 to 256. All warps of the warpgroup
/// execute it. The compiler has to know how many registers each thread starts with, as from
/// __launch_bounds__.
template <int kRegisters>
__device__ __forceinline__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
/// Waits until so many registers are free. What the new ones hold is undefined.
template <int kRegisters>
__device__ __forceinline__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// sums[64 x kColumns] = a[64x16] b[kColumns x 16]^T, plus sums if `adds`; of float8_e4m3fn with 32
/// terms, which it adds with fewer bits than float32 has (tests/cuda/check_wgmma_fp8.cu). Lane l of
/// warp w holds of columns 8 i + 2 (l % 4) and the next, in sums[4 i ...]: two of row 16 w + l / 4,
/// then two of the row 8 below.
///
/// It only starts: until the wgmma_wait that ends its group the sums are neither read nor written,
/// except by further wgmma of this shape, and the tiles are not written.
template <typename T, int kColumns>
__device__ __forceinline__ void wgmma_64(std::uint64_t a, std::uint64_t b, bool adds,
                                         float (&sums)[kColumns / 2]);

// clang-format off
#define TESSERA_SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define TESSERA_SUMS_8(i) TESSERA_SUMS_4(i), TESSERA_SUMS_4(i + 4)
#define TESSERA_SUMS_16(i) TESSERA_SUMS_8(i), TESSERA_SUMS_8(i + 8)
#define TESSERA_SUMS_24(i) TESSERA_SUMS_16(i), TESSERA_SUMS_8(i + 16)
#define TESSERA_SUMS_32(i) TESSERA_SUMS_16(i), TESSERA_SUMS_16(i + 16)
#define TESSERA_SUMS_64(i) TESSERA_SUMS_32(i), TESSERA_SUMS_32(i + 32)
#define TESSERA_SUMS_128(i) TESSERA_SUMS_64(i), TESSERA_SUMS_64(i + 64)

// The numbers of the operands: sums, then a, b and adds.
#define TESSERA_OPERANDS_4 "%0, %1, %2, %3"
#define TESSERA_OPERANDS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TESSERA_OPERANDS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TESSERA_OPERANDS_24 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23"
#define TESSERA_OPERANDS_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TESSERA_OPERANDS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define TESSERA_WGMMA_64(T, shape, type, tail, columns, num_sums, a_operand, b_operand,            \
                         adds_operand)                                                            \
  template <>                                                                                     \
  __device__ __forceinline__ void wgmma_64<T, columns>(std::uint64_t a, std::uint64_t b,          \
                                                       bool adds, float (&sums)[num_sums]) {      \
    asm volatile(                                                                                 \
      "{ .reg .pred adds; setp.ne.b32 adds, " adds_operand ", 0; "                                \
      "wgmma.mma_async.sync.aligned.m64n" #columns shape ".f32." type "." type " {"               \
      TESSERA_OPERANDS_##num_sums "}, " a_operand ", " b_operand ", adds, 1, 1" tail "; }"        \
      : TESSERA_SUMS_##num_sums(0) : "l"(a), "l"(b), "r"(adds ? 1 : 0));                          \
  }
#define TESSERA_WGMMA_64_OF(T, shape, type, tail)                                                  \
  TESSERA_WGMMA_64(T, shape, type, tail, 8, 4, "%4", "%5", "%6")                                  \
  TESSERA_WGMMA_64(T, shape, type, tail, 16, 8, "%8", "%9", "%10")                                \
  TESSERA_WGMMA_64(T, shape, type, tail, 32, 16, "%16", "%17", "%18")                             \
  TESSERA_WGMMA_64(T, shape, type, tail, 48, 24, "%24", "%25", "%26")                             \
  TESSERA_WGMMA_64(T, shape, type, tail, 128, 64, "%64", "%65", "%66")                            \
  TESSERA_WGMMA_64(T, shape, type, tail, 256, 128, "%128", "%129", "%130")

TESSERA_WGMMA_64_OF(__nv_bfloat16, "k16", "bf16", ", 0, 0")
TESSERA_WGMMA_64_OF(__half, "k16", "f16", ", 0, 0")
TESSERA_WGMMA_64_OF(__nv_fp8_e4m3, "k32", "e4m3", "")
#undef TESSERA_WGMMA_64_OF
#undef TESSERA_WGMMA_64
#undef TESSERA_OPERANDS_4
#undef TESSERA_OPERANDS_8
#undef TESSERA_OPERANDS_16
#undef TESSERA_OPERANDS_24
#undef TESSERA_OPERANDS_64
#undef TESSERA_OPERANDS_128
#undef TESSERA_SUMS_4
#undef TESSERA_SUMS_8
#undef TESSERA_SUMS_16
#undef TESSERA_SUMS_24
#undef TESSERA_SUMS_32
#undef TESSERA_SUMS_64
#undef TESSERA_SUMS_128
// clang-format on

}  // namespace tessera::cuda
