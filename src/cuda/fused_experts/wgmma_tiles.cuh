// The tiles of a CTA of the kernels for compute capability 9.0a: its shared memory, the stages of
// the pipeline, and which tiles it takes.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

using StageCursor = PipelineCursor<kWgmmaStages>;

/// The shared memory of a CTA.
struct WgmmaShared {
  std::uint32_t base;  ///< a multiple of 1024

  __device__ __forceinline__ std::uint32_t rows(const StageCursor& at) const {
    return base + at.stage * kWgmmaStageBytes;
  }
  __device__ __forceinline__ std::uint32_t weights(const StageCursor& at) const {
    return rows(at) + kWgmmaRowBytes;
  }
  __device__ __forceinline__ std::uint32_t scales(const StageCursor& at) const {
    return base + kWgmmaStages * kWgmmaStageBytes + at.stage * kWgmmaScaleBytes;
  }
  __device__ __forceinline__ std::uint32_t results(std::uint32_t warp) const {
    return base + kWgmmaStages * (kWgmmaStageBytes + kWgmmaScaleBytes) + warp * kWgmmaWarpBytes;
  }
  __device__ __forceinline__ std::uint32_t place(std::uint32_t i) const {
    return results(kWgmmaConsumerWarps) + i * sizeof(WgmmaPlace);
  }
  __device__ __forceinline__ std::uint32_t full(const StageCursor& at) const {
    return barrier(at.stage);
  }
  __device__ __forceinline__ std::uint32_t empty(const StageCursor& at) const {
    return barrier(kWgmmaStages + at.stage);
  }
  __device__ __forceinline__ std::uint32_t place_full(std::uint32_t i) const {
    return barrier(2 * kWgmmaStages + i);
  }
  __device__ __forceinline__ std::uint32_t place_empty(std::uint32_t i) const {
    return barrier(2 * kWgmmaStages + kWgmmaPlaces + i);
  }

 private:
  __device__ __forceinline__ std::uint32_t barrier(std::uint32_t i) const {
    return place(kWgmmaPlaces) + i * kBarrierBytes;
  }
};

/// The places of the tiles that a CTA takes, two at a time. Tiles start in their order whichever
/// CTA takes them, so that neighbours find in the cache what they share.
class WgmmaPlaces {
 public:
  __device__ __forceinline__ explicit WgmmaPlaces(WgmmaShared shared) : shared_(shared) {}

  /// One thread publishes the next place.
  __device__ __forceinline__ void publish(const WgmmaPlace& place) {
    wait(shared_.place_empty(slot_), parity_ ^ 1);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_.place(slot_)),
                 "r"(place.first_slot), "r"(place.expert), "r"(place.first_output),
                 "r"(place.num_halves)
                 : "memory");
    arrive(shared_.place_full(slot_));
    advance();
  }

  /// All threads of a warp read the next place.
  __device__ __forceinline__ WgmmaPlace read() {
    wait(shared_.place_full(slot_), parity_);
    WgmmaPlace place;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(place.first_slot), "=r"(place.expert), "=r"(place.first_output),
                   "=r"(place.num_halves)
                 : "r"(shared_.place(slot_))
                 : "memory");
    __syncwarp();
    arrive(shared_.place_empty(slot_));
    advance();
    return {uniform(place.first_slot), uniform(place.expert), uniform(place.first_output),
            uniform(place.num_halves)};
  }

 private:
  __device__ __forceinline__ void advance() {
    slot_ ^= 1;
    if (slot_ == 0) parity_ ^= 1;
  }

  WgmmaShared shared_;
  std::uint32_t slot_ = 0;
  std::uint32_t parity_ = 0;
};

/// A thread of the warpgroups that multiply. It reads its number anew, so that nothing that follows
/// from it occupies registers while sums are computed.
struct WgmmaThread {
  int warp;  ///< of both warpgroups
  int lane;

  __device__ __forceinline__ WgmmaThread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    warp = (thread - kWarpgroupThreads) / 32;
    lane = thread % 32;
  }

  /// The slot of a line of the warp.
  __device__ __forceinline__ std::int32_t slot_of(const WgmmaPlace& place, int line) const {
    return place.first_slot + 16 * warp + line;
  }
};

/// Takes the next tile, of which nobody else takes the same.
__device__ __forceinline__ std::uint32_t take_tile(std::int32_t* tiles_taken) {
  // The counter is -1 at first.
  return static_cast<std::uint32_t>(atomicAdd(tiles_taken, 1) + 1);
}

/// The place of a tile of so many blocks of pairs.
__device__ __forceinline__ WgmmaPlace place_of(const ProductArgs& args, std::uint32_t num_blocks,
                                               std::uint32_t tile) {
  if (tile >= num_blocks * args.num_columns) return {-1, 0, 0, 0};
  const TileAt at = tile_at<8>(tile, num_blocks, args.num_columns);
  const auto first_slot = static_cast<std::int32_t>(at.block * kWgmmaPairs);
  const bool has_second = args.sorted_pairs[first_slot + kWgmmaHalf] < args.num_pairs;
  return {first_slot, args.block_experts[at.block],
          static_cast<std::int32_t>(at.column) * outputs_of(args, kWgmmaColumns),
          has_second ? 2 : 1};
}

}  // namespace tessera::cuda
