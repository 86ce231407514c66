// Clusters: CTAs that run at the same time on neighbouring multiprocessors of compute
// capability 9.0 and reach each other's shared memory (PTX ISA, "shared::cluster").
#pragma once

#include <cstdint>

namespace tessera::cuda {

/// The number of this CTA in its cluster.
__device__ __forceinline__ std::uint32_t rank_in_cluster() {
  std::uint32_t rank = 0;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Waits for all threads of the cluster. What they wrote to shared memory before is visible after.
__device__ __forceinline__ void synchronize_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

/// The address, in the cluster, of what lies at `address` in the CTA of this rank.
__device__ __forceinline__ std::uint32_t in_cta(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t result = 0;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

/// Arrives at a barrier of any CTA of the cluster. Orders what this thread did in its own CTA: what
/// another CTA is to read goes by store_in_cluster.
__device__ __forceinline__ void arrive_in_cluster(std::uint32_t barrier_in_cluster) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier_in_cluster) : "memory");
}

/// The same, and announces bytes that will be written.
__device__ __forceinline__ void arrive_and_expect_in_cluster(std::uint32_t barrier_in_cluster,
                                                             std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier_in_cluster),
      "r"(bytes)
      : "memory");
}

/// Stores 16 bytes in any CTA of the cluster. They arrive at a barrier of that CTA.
__device__ __forceinline__ void store_in_cluster(std::uint32_t target_in_cluster, int4 value,
                                                 std::uint32_t barrier_in_cluster) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(target_in_cluster),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier_in_cluster)
      : "memory");
}

}  // namespace tessera::cuda
