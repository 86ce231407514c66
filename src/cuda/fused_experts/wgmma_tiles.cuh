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

/// The shared memory of a CTA.
template <std::size_t kTiling>
struct WgmmaShared {
  using Layout = WgmmaLayout<kTiling>;
  using Stage = PipelineCursor<Layout::kStages>;

  std::uint32_t base;  ///< a multiple of 1024

  __device__ __forceinline__ std::uint32_t rows(const Stage& at) const {
    return base + at.stage * Layout::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t weights(const Stage& at) const {
    return rows(at) + Layout::kRowBytes;
  }
  __device__ __forceinline__ std::uint32_t scales(const Stage& at) const {
    return base + Layout::kStages * Layout::kStageBytes + at.stage * Layout::kScaleBytes;
  }
  __device__ __forceinline__ std::uint32_t results(std::uint32_t warp) const {
    return base + Layout::kStages * (Layout::kStageBytes + Layout::kScaleBytes) +
           warp * kWgmmaWarpBytes;
  }
  __device__ __forceinline__ std::uint32_t place(std::uint32_t i) const {
    return results(Layout::kConsumerWarps) + i * sizeof(WgmmaPlace);
  }
  __device__ __forceinline__ std::uint32_t full(const Stage& at) const { return barrier(at.stage); }
  __device__ __forceinline__ std::uint32_t empty(const Stage& at) const {
    return barrier(Layout::kStages + at.stage);
  }
  __device__ __forceinline__ std::uint32_t place_full(std::uint32_t i) const {
    return barrier(2 * Layout::kStages + i);
  }
  __device__ __forceinline__ std::uint32_t place_empty(std::uint32_t i) const {
    return barrier(2 * Layout::kStages + kWgmmaPlaces + i);
  }

 private:
  __device__ __forceinline__ std::uint32_t barrier(std::uint32_t i) const {
    return place(kWgmmaPlaces) + i * kBarrierBytes;
  }
};

/// The places of the tiles that a CTA takes, two at a time. Tiles start in their order whichever
/// CTA takes them, so that neighbours find in the cache what they share.
template <std::size_t kTiling>
class WgmmaPlaces {
 public:
  __device__ __forceinline__ explicit WgmmaPlaces(WgmmaShared<kTiling> shared) : shared_(shared) {}

  /// One thread publishes the next place.
  __device__ __forceinline__ void publish(const WgmmaPlace& place) {
    wait(shared_.place_empty(slot_), parity_ ^ 1);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_.place(slot_)),
                 "r"(place.first_slot), "r"(place.expert), "r"(place.first_output),
                 "r"(place.num_parts)
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
                   "=r"(place.num_parts)
                 : "r"(shared_.place(slot_))
                 : "memory");
    __syncwarp();
    arrive(shared_.place_empty(slot_));
    advance();
    return {uniform(place.first_slot), uniform(place.expert), uniform(place.first_output),
            uniform(place.num_parts)};
  }

 private:
  __device__ __forceinline__ void advance() {
    slot_ ^= 1;
    if (slot_ == 0) parity_ ^= 1;
  }

  WgmmaShared<kTiling> shared_;
  std::uint32_t slot_ = 0;
  std::uint32_t parity_ = 0;
};

/// A thread of the warpgroups that multiply. It reads its number anew, so that nothing that follows
/// from it occupies registers while sums are computed.
struct WgmmaThread {
  int warp;  ///< of all these warpgroups
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
template <std::size_t kTiling>
__device__ __forceinline__ WgmmaPlace place_of(const ProductArgs& args, std::uint32_t num_blocks,
                                               std::uint32_t tile) {
  if (tile >= num_blocks * args.num_columns) return {-1, 0, 0, 0};
  const TileAt at = tile_at<8>(tile, num_blocks, args.num_columns);
  const auto first_slot = static_cast<std::int32_t>(at.block * WgmmaLayout<kTiling>::kPairs);
  std::int32_t num_parts = 1;
#pragma unroll
  for (int part = 1; part < WgmmaLayout<kTiling>::kParts; ++part) {
    num_parts += args.sorted_pairs[first_slot + part * kWgmmaPart] < args.num_pairs ? 1 : 0;
  }
  return {first_slot, args.block_experts[at.block],
          static_cast<std::int32_t>(at.column) * outputs_of(args, WgmmaLayout<kTiling>::kColumns),
          num_parts};
}

}  // namespace tessera::cuda
