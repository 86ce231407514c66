// The tiles of a CTA of the kernels for compute capability 9.0a: its shared memory, the stages of
// the pipeline, and which tiles it takes.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/parts/cluster.cuh"
#include "cuda/parts/mbarrier.cuh"

namespace tessera::cuda {

/// A stage of the pipeline, and the parity of the phase in which it is full.
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

__device__ __forceinline__ std::int32_t outputs_per_tile(const ProductArgs& args) {
  return args.is_gated ? kWgmmaBoxRows : kWgmmaColumns;
}

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

/// The tile of a CTA.
struct WgmmaTile : WgmmaPlace {
  bool shares_weights;  ///< with the other CTA of its cluster
};

/// The tile of one of the kCtas CTAs that have a place: pairs of their own and the same weights; or
/// if there are no more pairs than one CTA takes, the same pairs and weights of its own.
template <int kCtas>
__device__ __forceinline__ WgmmaTile tile_of(const ProductArgs& args, const WgmmaPlace& place) {
  static_assert(kCtas <= 2);
  if constexpr (kCtas == 1) return {place, false};
  const auto rank = static_cast<std::int32_t>(rank_in_cluster());
  WgmmaTile tile{place, place.num_halves > 2};
  if (tile.shares_weights) {
    tile.first_slot += rank * kWgmmaPairs;
    tile.num_halves = rank == 0 ? 2 : place.num_halves - 2;
  } else {
    tile.first_output += rank * outputs_per_tile(args);
    if (tile.first_output >= args.num_outputs) tile.num_halves = 0;
  }
  return tile;
}

/// The places of the tiles that a cluster of kCtas takes, two at a time in the shared memory of
/// each CTA. Tiles start in their order whichever cluster takes them, so that neighbours find in
/// the cache what they share.
template <int kCtas>
class WgmmaPlaces {
 public:
  __device__ __forceinline__ explicit WgmmaPlaces(WgmmaShared shared) : shared_(shared) {}

  /// One thread of the cluster's first CTA publishes the next place, of all its CTAs.
  __device__ __forceinline__ void publish(const WgmmaPlace& place) {
    wait(shared_.place_empty(slot_), parity_ ^ 1);
    const int4 word =
        make_int4(place.first_slot, place.expert, place.first_output, place.num_halves);
    if constexpr (kCtas == 1) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_.place(slot_)),
                   "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                   : "memory");
      arrive(shared_.place_full(slot_));
    } else {
      for (std::uint32_t rank = 0; rank < kCtas; ++rank) {
        const std::uint32_t full = in_cta(shared_.place_full(slot_), rank);
        arrive_and_expect_in_cluster(full, sizeof(place));
        store_in_cluster(in_cta(shared_.place(slot_), rank), word, full);
      }
    }
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
    if (threadIdx.x % 32 == 0) {
      if constexpr (kCtas == 1) {
        arrive(shared_.place_empty(slot_));
      } else {
        arrive_in_cluster(in_cta(shared_.place_empty(slot_), 0));
      }
    }
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

/// The place of a tile of kCtas CTAs. It has no halves if the cluster that takes the column before,
/// of the same block, computes it too.
template <int kCtas>
__device__ __forceinline__ WgmmaPlace place_of(const ProductArgs& args, std::uint32_t tile) {
  constexpr std::uint32_t kPairs = kCtas * kWgmmaPairs;
  const std::uint32_t num_blocks = static_cast<std::uint32_t>(*args.num_slots) / kPairs;
  if (tile >= num_blocks * args.num_columns) return {-1, 0, 0, 0};
  const TileAt at = tile_at<8 / kCtas>(tile, num_blocks, args.num_columns);
  const auto first_slot = static_cast<std::int32_t>(at.block * kPairs);
  std::int32_t num_halves = 1;
  for (std::int32_t i = 1; i < 2 * kCtas; ++i) {
    const std::int32_t pair = args.sorted_pairs[first_slot + i * kWgmmaHalf];
    num_halves += pair < args.num_pairs ? 1 : 0;
  }
  if (kCtas > 1 && num_halves <= 2 && at.column % 2 != 0) num_halves = 0;
  return {first_slot, args.block_experts[at.block],
          static_cast<std::int32_t>(at.column) * outputs_per_tile(args), num_halves};
}

__device__ __forceinline__ std::int32_t num_stages_of(const ProductArgs& args) {
  return (args.depth + kStageDepth - 1) / kStageDepth;
}

}  // namespace tessera::cuda
