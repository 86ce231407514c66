// This kernel runs the whole layer where experts have few pairs. Its time is then the time to read
// the weights. It exchanges the operands of wgmma: 64 rows of the weights are multiplied by the
// pairs of an expert, so that a tile has hardly more columns than pairs. Each CTA sorts the pairs
// by expert for itself. Then the CTAs take work from one counter: first the tiles of the gate-up
// product, then the tiles of the down product, then parts of the sum over slots. One warp copies
// weights without a pause: it copies weights of the down product while other warps still compute
// the rows that they multiply.
//
// No CTA waits for one that has not started: a tile waits for tiles before it alone, which have
// been taken by CTAs that run, and these compute theirs in ascending order. In fp8 with scales of
// rows it also waits for parts of rows that are quantised: all of them have been taken when its
// group computes it.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/fused_experts/swap_ab_gatherer.cuh"
#include "cuda/fused_experts/swap_ab_multiplier.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/tma.cuh"

namespace tessera::cuda {

/// Lets the layer start, which reads the ids at once, when what came before has ended.
__device__ __forceinline__ void start_layer() {
  pdl_wait();
  __threadfence();
  pdl_launch_dependents();
}

/// Clears the counters, by a CTA.
__device__ __forceinline__ void clear(const SwapAbCounters& counters) {
  for (std::uint32_t i = threadIdx.x; i < counters.length; i += kSwapAbClearThreads) {
    counters.counters[i] = 0;
  }
}

/// Fetches the first weights of a tile into the L2 cache, by one warp, while x is quantised. Each
/// CTA has the first tile of another one of the takes that come first, whoever has that take.
template <Scaling kScaling, std::size_t kTiling>
__device__ __forceinline__ void prefetch_weights(const SwapAbArgs& args,
                                                 SwapAbShared<kTiling> shared) {
  const SwapAbTiles tiles = tiles_of(args, shared, blockIdx.x);
  if (tiles.step != SwapAbStep::kGateUp || threadIdx.x % 32 != 0) return;
  constexpr std::int32_t kDepth = kDepthOf<kScaling>;
  constexpr std::int32_t kSteps =
      SwapAbLayout<kTiling>::kStages * SwapAbSteps<kSwapAbTilings[kTiling].gate_up_rows>::kNumber;
  const std::int32_t end = min(args.gate_up.args.depth, kSteps * kDepth);
  for (std::int32_t first = 0; first < end; first += kDepth) {
    prefetch_box(&args.gate_up.weights, first, 0, 0, tiles.first_output / kSwapAbRun, tiles.expert);
  }
}

/// Copies the weights of all tiles, by one warp.
template <Scaling kScaling, std::size_t kTiling>
__device__ __forceinline__ void copy_weights(const SwapAbArgs& args, SwapAbShared<kTiling> shared) {
  Taken<kTiling> taken(args, shared);
  typename SwapAbShared<kTiling>::Stage at;
  const CachePolicy policy = evict_first();
  while (true) {
    const SwapAbTiles tiles = taken.read();
    taken.release();
    if (tiles.step == SwapAbStep::kEnd) return;
    if (tiles.step == SwapAbStep::kCombine) continue;
    const SwapAbProduct& product = product_of(args, tiles.step);
    const bool is_evicted_first =
        shared.blocks()[tiles.block].count <= product.max_blocks_evicted_first;
    with_rows<kTiling>(tiles.step, [&]<int kRows>() {
      using Steps = SwapAbSteps<kRows>;
      constexpr int kDepth = kDepthOf<kScaling>;
      for (std::int32_t tile = 0; tile < tiles.num_tiles; ++tile) {
        const std::int32_t output = tiles.first_output + tile * outputs_of(product);
        for (std::int32_t begin = 0; begin < product.args.depth; begin += Steps::kNumber * kDepth) {
          wait(shared.empty(at), at.parity ^ 1);
          if (threadIdx.x % 32 == 0) {
            arrive_and_expect(shared.full(at), kSwapAbWeightBytes);
#pragma unroll
            for (int step = 0; step < Steps::kNumber; ++step) {
              const std::uint32_t target = shared.weights(at) + step * Steps::kWeightBytes;
              const std::int32_t first = begin + step * kDepth;
              const std::int32_t run = output / kSwapAbRun;
              if (is_evicted_first) {
                copy_box(target, &product.weights, shared.full(at), first, 0, 0, run, tiles.expert,
                         policy);
              } else {
                copy_box(target, &product.weights, shared.full(at), first, 0, 0, run, tiles.expert);
              }
            }
          }
          __syncwarp();
          at.advance();
        }
      }
    });
  }
}

template <std::size_t kTiling>
__device__ __forceinline__ void init_barriers(SwapAbShared<kTiling> shared) {
  using Layout = SwapAbLayout<kTiling>;
  constexpr std::uint32_t kWarpsOfGroup = Layout::kGroupThreads / 32;
  for (typename SwapAbShared<kTiling>::Stage at; at.parity == 0; at.advance()) {
    init_barrier(shared.full(at), 1 + kGatherThreads);
    init_barrier(shared.empty(at), kWarpsOfGroup);
  }
  init_barrier(shared.taken_full(), 1);
  init_barrier(shared.taken_empty(), kReadingThreads);
  for (int group = 0; group < Layout::kGroups; ++group) {
    init_barrier(shared.turn(group), kWarpsOfGroup);
  }
  fence_barriers();
}

/// T: the type of x, biases and the output.
template <Scaling kScaling, typename T, std::size_t kTiling>
__global__ void __launch_bounds__(kSwapAbThreads, 1)
    swap_ab_layer(const __grid_constant__ SwapAbArgs args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const SwapAbShared<kTiling> shared{memory};
  pdl_launch_dependents();
  if (threadIdx.x == 0) init_barriers(shared);
  if (threadIdx.x == 32 * kCopyingWarp) {
    prefetch_map(&args.gate_up.weights);
    prefetch_map(&args.down.weights);
  }
  // pdl_wait waits until the counters are clear. The ids were there before: the kernel that clears
  // the counters has waited for the kernels before it, and only then let this one start. The first
  // tiles are taken while the pairs are sorted.
  const std::uint32_t warp = threadIdx.x / 32;
  std::uint32_t taken = 0;
  if (warp == kTakingWarp) {
    pdl_wait();
    if (threadIdx.x % 32 == 0) taken = take(args);
  }
  sort_pairs(args, shared);
  if constexpr (kScaling == Scaling::kBlocks) {
    if (warp == kCopyingWarp && args.prefetches_weights) {
      prefetch_weights<kScaling, kTiling>(args, shared);
    }
  }
  pdl_wait();
  if (warp < kMultiplyWarps) {
    Multiplier<kScaling, T, kTiling>(args, shared).run();
  } else if (warp == kTakingWarp) {
    if (threadIdx.x % 32 == 0) take_tiles(args, shared, taken);
  } else if (warp == kCopyingWarp) {
    copy_weights<kScaling, kTiling>(args, shared);
  } else {
    RowsGatherer<kScaling, kTiling>(args, shared).run();
  }
}

/// The kernels of the first kNumTilings tilings.
template <Scaling kScaling, typename T, std::size_t kNumTilings>
const void* swap_ab_kernel_of(std::size_t tiling) {
  const auto of = [&]<std::size_t... kTilings>(std::index_sequence<kTilings...>) {
    const std::array<const void*, kNumTilings> kernels{
        reinterpret_cast<const void*>(&swap_ab_layer<kScaling, T, kTilings>)...};
    return kernels[tiling];
  };
  return of(std::make_index_sequence<kNumTilings>{});
}

}  // namespace tessera::cuda
