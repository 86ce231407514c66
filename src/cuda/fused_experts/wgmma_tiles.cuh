// The tiles of a CTA of the kernels for compute capability 9.0a: its shared memory, the stages of
// the pipeline, and which tiles it takes.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/parts/mbarrier.cuh"

namespace tessera::cuda {

/// A stage of the pipeline. The parity is that of the phase in which it is full.
struct StageCursor {
  std::uint32_t stage = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kWgmmaStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// The tile of a CTA: a block of pairs of an expert, and the first output.
struct WgmmaPlace {
  std::int32_t first_slot;  ///< -1: no tile is left
  std::int32_t expert;
  std::int32_t first_output;
  std::int32_t has_second_half;
};

/// The shared memory of a CTA.
struct WgmmaShared {
  std::uint32_t base;  ///< a multiple of 1024

  __device__ __forceinline__ std::uint32_t rows(const StageCursor& at) const {
    return base + at.stage * kWgmmaStageBytes;
  }
  __device__ __forceinline__ std::uint32_t weights(const StageCursor& at) const {
    return rows(at) + kWgmmaRowBytes;
  }
  __device__ __forceinline__ std::uint32_t results(std::uint32_t warp) const {
    return base + kWgmmaStages * kWgmmaStageBytes + warp * kWgmmaWarpBytes;
  }
  __device__ __forceinline__ std::uint32_t place(std::uint32_t parity) const {
    return results(kWgmmaConsumerWarps) + parity * sizeof(WgmmaPlace);
  }
  __device__ __forceinline__ std::uint32_t full(const StageCursor& at) const {
    return place(2) + at.stage * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(const StageCursor& at) const {
    return full(at) + kWgmmaStages * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t place_full(std::uint32_t parity) const {
    return place(2) + (2 * kWgmmaStages + parity) * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t place_empty(std::uint32_t parity) const {
    return place_full(parity + 2);
  }
};

/// The places of the tiles that a CTA takes, two at a time in shared memory. Tiles start in their
/// order whichever CTA takes them, so that neighbours find in the cache what they share.
class WgmmaPlaces {
 public:
  __device__ __forceinline__ explicit WgmmaPlaces(WgmmaShared shared) : shared_(shared) {}

  /// One thread publishes the next place.
  __device__ __forceinline__ void publish(const WgmmaPlace& place) {
    wait(shared_.place_empty(slot_), parity_ ^ 1);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_.place(slot_)),
                 "r"(place.first_slot), "r"(place.expert), "r"(place.first_output),
                 "r"(place.has_second_half)
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
                   "=r"(place.has_second_half)
                 : "r"(shared_.place(slot_))
                 : "memory");
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(shared_.place_empty(slot_));
    advance();
    return place;
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

/// Takes the next tile, of which nobody else takes the same.
__device__ __forceinline__ std::uint32_t take_tile(const WgmmaArgs& args) {
  // The counter is -1 at first.
  return static_cast<std::uint32_t>(atomicAdd(args.tiles_taken, 1) + 1);
}

/// Neighbouring tiles share weights, and up to kBlocksAtOnce blocks share them from the cache.
__device__ __forceinline__ WgmmaPlace place_of(const ProductArgs& args, std::uint32_t tile) {
  constexpr std::uint32_t kBlocksAtOnce = 8;
  const std::uint32_t num_blocks = static_cast<std::uint32_t>(*args.num_slots) / kWgmmaPairs;
  if (tile >= num_blocks * args.num_columns) return {-1, 0, 0, 0};
  const std::uint32_t first = tile / (kBlocksAtOnce * args.num_columns) * kBlocksAtOnce;
  const std::uint32_t in_group = tile - first * args.num_columns;
  const std::uint32_t blocks = min(num_blocks - first, kBlocksAtOnce);
  const std::uint32_t block = first + in_group % blocks;
  const auto first_slot = static_cast<std::int32_t>(block * kWgmmaPairs);
  const std::uint32_t outputs = args.is_gated ? kWgmmaBoxRows : kWgmmaColumns;
  return {first_slot, args.block_experts[block],
          static_cast<std::int32_t>(in_group / blocks * outputs),
          args.sorted_pairs[first_slot + kWgmmaHalf] < args.num_pairs ? 1 : 0};
}

__device__ __forceinline__ std::int32_t num_stages_of(const ProductArgs& args) {
  return (args.depth + kStageDepth - 1) / kStageDepth;
}

}  // namespace tessera::cuda
