// The products of the kernels for compute capability 9.0a.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma_epilogue.cuh"
#include "cuda/fused_experts/wgmma_scales.cuh"
#include "cuda/fused_experts/wgmma_tiles.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// The products of a warpgroup: of half a block of pairs.
template <Scaling kScaling, typename T, bool kIsGateUp>
class WgmmaConsumer {
 public:
  using Args = WgmmaArgsFor<kScaling>;

  __device__ __forceinline__ WgmmaConsumer(const Args& args, WgmmaShared shared)
      : args_(args.product),
        shared_(shared),
        places_(shared),
        half_(uniform(static_cast<int>(threadIdx.x) / kWarpgroupThreads - 1)) {}

  __device__ __forceinline__ void run() {
    read_next();
    while (next_.first_slot >= 0) {
      const WgmmaPlace place = next_;
      const std::int32_t pair = next_pair_;
      const bool has_pairs = half_ < place.num_halves;
      if (!has_pairs) {
        skip();
      } else {
        using Epilogue = WgmmaEpilogue<kScaling, T, kIsGateUp>;
        Epilogue(args_, shared_).begin(place);
        const WgmmaRow row = row_of(place, pair);
        float sums[kWgmmaColumns / 2] = {};
        multiply(sums);
        Epilogue(args_, shared_).finish(place, row, sums);
      }
    }
  }

 private:
  using Operand = OperandOf<kScaling, T>;
  static constexpr int kDepth = kDepthOf<kScaling>;
  static constexpr int kWordsPerWgmma = 2;
  static constexpr int kWgmmasPerStage = kLineBytes / (kWordsPerWgmma * int{kWordBytes});

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ __forceinline__ void release(const StageCursor& at) const {
    if (lane() == 0) arrive(shared_.empty(at));
  }

  /// Reads the next place, which is published once the last stage of this tile is on its way.
  __device__ __forceinline__ void read_next() {
    next_ = places_.read();
    if (next_.first_slot < 0) return;
    const WgmmaThread thread;
    next_pair_ = args_.sorted_pairs[thread.slot_of(next_, thread.lane % 16)];
  }

  __device__ __forceinline__ void skip() {
    for (std::int32_t begin = 0; begin < args_.depth; begin += kDepth) {
      wait(shared_.full(at_), at_.parity);
      __syncwarp();  // no lane may still wait for this phase when the stage is filled again
      release(at_);
      at_.advance();
    }
    read_next();
  }

  __device__ __forceinline__ void wait_for(const StageCursor& at) const {
    wait(shared_.full(at), at.parity);
    if constexpr (kIsGateUp) fence_async_proxy();  // for what cp.async wrote
  }

  __device__ __forceinline__ std::uint64_t rows() const {
    return tile_descriptor(shared_.rows(at_) + half_ * (kWgmmaRowBytes / 2));
  }

  __device__ __forceinline__ WgmmaRow row_of(const WgmmaPlace& place, std::int32_t pair) const {
    if (pair >= args_.num_pairs) return {pair, 1, 1};
    WgmmaRow row{pair, router_weight(args_, pair), 1};
    if constexpr (kScaling == Scaling::kRows) {
      const std::int64_t multiplied =
          kIsGateUp ? static_cast<std::int32_t>(divide(pair, args_.slots_per_row))
                    : WgmmaThread().slot_of(place, lane() % 16);
      row.scale = args_.row_scales[multiplied * args_.row_scale_stride];
    }
    return row;
  }

  __device__ __forceinline__ void multiply(float (&sums)[kWgmmaColumns / 2]) {
    if constexpr (kScaling == Scaling::kNone) {
      multiply_16_bits(sums);
    } else {
      multiply_fp8(sums);
    }
  }

  __device__ __forceinline__ void multiply_16_bits(float (&sums)[kWgmmaColumns / 2]) {
    StageCursor previous;
    for (std::int32_t begin = 0; begin < args_.depth; begin += kDepth) {
      wait_for(at_);
      const std::uint64_t weights = tile_descriptor(shared_.weights(at_));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kWgmmasPerStage; ++k) {
        wgmma_64<Operand, kWgmmaColumns>(rows() + k * kWordsPerWgmma, weights + k * kWordsPerWgmma,
                                         begin > 0 || k > 0, sums);
      }
      wgmma_commit();
      if (begin + kDepth >= args_.depth) read_next();
      wgmma_wait<1>();
      if (begin > 0) release(previous);
      previous = at_;
      at_.advance();
    }
    wgmma_wait<0>();
    release(previous);
  }

  /// Each box of weights has sums of the stage, which are scaled and added while the other
  /// warpgroup multiplies.
  __device__ __forceinline__ void multiply_fp8(float (&sums)[kWgmmaColumns / 2]) {
    wait_for(at_);
    for (std::int32_t begin = 0; begin < args_.depth; begin += kDepth) {
      const bool is_last = begin + kDepth >= args_.depth;
      StageCursor next = at_;
      next.advance();
      WgmmaStageScales<kScaling> scales;
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        const std::uint64_t weights =
            tile_descriptor(shared_.weights(at_) + box * (kWgmmaBoxRows * kLineBytes));
        float of_box[kWgmmaBoxRows / 2];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kWgmmasPerStage; ++k) {
          wgmma_64<Operand, kWgmmaBoxRows>(rows() + k * kWordsPerWgmma,
                                           weights + k * kWordsPerWgmma, k > 0, of_box);
        }
        wgmma_commit();
        if (box == 0) scales.read(shared_.scales(at_));
        if (is_last && box == 0) read_next();
        if (!is_last && box == 1) wait_for(next);
        wgmma_wait<0>();
        if (box == 1) release(at_);
        scales.add(box, of_box, sums);
      }
      at_ = next;
    }
  }

  const typename Args::Product& args_;
  WgmmaShared shared_;
  WgmmaPlaces places_;
  StageCursor at_;
  int half_;
  WgmmaPlace next_;
  std::int32_t next_pair_ = 0;
};

}  // namespace tessera::cuda
