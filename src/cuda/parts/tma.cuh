// Copies of boxes of a tensor to shared memory by the copy engine of compute capability 9.0 (PTX
// ISA, "cp.async.bulk.tensor"). A tensor map, which the host encodes, says where the tensor lies
// and how large a box is. Elements outside of the tensor arrive as zeros.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tessera::cuda {

/// Fetches a tensor map ahead of its first use.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// How the L2 cache treats the lines that a copy reads (PTX ISA, "createpolicy"). A copy
/// with "evict_normal" is not the same as a copy without a policy: it was slower.
using CachePolicy = std::uint64_t;

/// The lines leave the cache before others.
__device__ __forceinline__ CachePolicy evict_first() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// One thread starts the copy of the box at these coordinates, innermost first and a multiple of 16
/// bytes. It arrives at `barrier` as the bytes of a whole box, which the phase has to expect.
/// `target` is a multiple of 128 bytes; of 1024 with the 128-byte swizzle, whose pattern begins at
/// such addresses.
__device__ __forceinline__ void copy_box(std::uint32_t target, const CUtensorMap* map,
                                         std::uint32_t barrier, std::int32_t x, std::int32_t y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void copy_box(std::uint32_t target, const CUtensorMap* map,
                                         std::uint32_t barrier, std::int32_t x, std::int32_t y,
                                         std::int32_t z, std::int32_t w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

__device__ __forceinline__ void copy_box(std::uint32_t target, const CUtensorMap* map,
                                         std::uint32_t barrier, std::int32_t x, std::int32_t y,
                                         std::int32_t z, std::int32_t w, std::int32_t v,
                                         CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void copy_box(std::uint32_t target, const CUtensorMap* map,
                                         std::uint32_t barrier, std::int32_t x, std::int32_t y,
                                         std::int32_t z, std::int32_t w, std::int32_t v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4, %5, %6, %7}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
      : "memory");
}

/// Fetches the box at these coordinates into the L2 cache, by one thread.
__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, std::int32_t x, std::int32_t y,
                                             std::int32_t z, std::int32_t w, std::int32_t v) {
  asm volatile(
      "cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %5}];" ::"l"(map),
      "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
      : "memory");
}

/// One thread starts the copy of so many bytes, a multiple of 16 as both addresses. They arrive at
/// `barrier`, which has to expect them.
__device__ __forceinline__ void copy_bytes(std::uint32_t target, const void* source,
                                           std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, [%2];" ::
          "r"(target),
      "l"(source), "r"(barrier), "r"(bytes)
      : "memory");
}

/// Shows what this thread wrote to shared memory to the copy engine and to wgmma.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace tessera::cuda
