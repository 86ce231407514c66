// The tiles of the kernel that exchanges operands: how CTAs take them, and what they wait for.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/swap_ab_blocks.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// The steps of the layer. Tiles are numbered by step, in this order, and a tile waits for tiles of
/// the step before.
enum class SwapAbStep { kGateUp, kDown, kCombine, kEnd };

/// Neighbouring tiles of a block that a CTA takes at once.
struct SwapAbTiles {
  SwapAbStep step;
  std::uint32_t block;  ///< of kCombine: the first part of the output
  std::int32_t expert;
  std::int32_t first_output;
  std::int32_t num_tiles;
  std::int32_t first_pair;  ///< in the list of pairs by expert
  std::int32_t num_pairs;
};

/// Pair i of the tiles' block.
template <std::size_t kTiling>
__device__ __forceinline__ std::int32_t pair_of(const SwapAbShared<kTiling>& shared,
                                                const SwapAbTiles& tiles, int i) {
  return shared.pairs()[tiles.first_pair + i];
}

/// Calls `function` with the rows of a step's tiles as a template argument, so that the loops over
/// stages have no branch for it.
template <std::size_t kTiling, typename Function>
__device__ __forceinline__ auto with_rows(SwapAbStep step, Function function) {
  constexpr SwapAbTiling kTiles = kSwapAbTilings[kTiling];
  if constexpr (kTiles.gate_up_rows != kTiles.down_rows) {
    if (step == SwapAbStep::kGateUp) return function.template operator()<kTiles.gate_up_rows>();
  }
  return function.template operator()<kTiles.down_rows>();
}

/// Outputs of a tile.
__device__ __forceinline__ std::int32_t outputs_of(const SwapAbProduct& product) {
  return outputs_of(product.args, product.tile_rows);
}

template <std::size_t kTiling>
__device__ __forceinline__ std::uint32_t num_to_take(const SwapAbArgs& args,
                                                     std::uint32_t num_blocks) {
  constexpr int kOperands = SwapAbLayout<kTiling>::kOperands;
  return num_blocks * (args.gate_up.takes_per_block + args.down.takes_per_block) +
         (args.num_combine_parts + kOperands - 1) / kOperands;
}

template <std::size_t kTiling>
__device__ __forceinline__ SwapAbTiles tiles_of(const SwapAbArgs& args,
                                                SwapAbShared<kTiling> shared, std::uint32_t taken) {
  const auto in_product = [&](SwapAbStep step, const SwapAbProduct& product) -> SwapAbTiles {
    // The blocks of an expert take turns: the weights that one of them has read are still in the L2
    // cache when the next one does.
    // An expert has as many takes as without turns, so this block is one of the take's expert.
    const std::uint32_t a_block = taken / product.takes_per_block;
    const std::uint32_t num_blocks = shared.blocks()[a_block].count;
    const std::uint32_t first_block = a_block - shared.blocks()[a_block].number;
    const std::uint32_t take = taken - first_block * product.takes_per_block;  // of the expert
    const std::uint32_t number = first_block + take % num_blocks;
    const std::uint32_t first_tile = take / num_blocks * static_cast<std::uint32_t>(product.run);
    const auto left = static_cast<std::int32_t>(product.args.num_columns - first_tile);
    const SwapAbBlock block = shared.blocks()[number];
    return {step,
            number,
            block.expert,
            static_cast<std::int32_t>(first_tile) * outputs_of(product),
            min(left, product.run),
            block.first,
            block.num_pairs};
  };
  const std::uint32_t num_blocks = shared.num_blocks();
  const std::uint32_t of_gate_up = num_blocks * args.gate_up.takes_per_block;
  if (taken < of_gate_up) return in_product(SwapAbStep::kGateUp, args.gate_up);
  taken -= of_gate_up;
  const std::uint32_t of_down = num_blocks * args.down.takes_per_block;
  if (taken < of_down) return in_product(SwapAbStep::kDown, args.down);
  taken -= of_down;
  const std::uint32_t first_part = taken * SwapAbLayout<kTiling>::kOperands;
  const bool is_left = first_part < args.num_combine_parts;
  return {is_left ? SwapAbStep::kCombine : SwapAbStep::kEnd, first_part, 0, 0, 0, 0, 0};
}

inline constexpr std::uint32_t kMultiplyWarps = kSwapAbWarpgroups * 4;
inline constexpr std::uint32_t kTakingWarp = kMultiplyWarps;
inline constexpr std::uint32_t kCopyingWarp = kTakingWarp + 1;
inline constexpr std::uint32_t kGatherWarps = 3;
inline constexpr std::uint32_t kGatherThreads = 32 * kGatherWarps;
static_assert(32 * (kCopyingWarp + 1 + kGatherWarps) == kSwapAbThreads);
/// Threads that read what tiles are taken: all but the warp that takes them.
inline constexpr std::uint32_t kReadingThreads = kSwapAbThreads - 32;
static_assert(kCombineThreads == kWarpgroupThreads);

/// A thread of a group that multiplies.
template <std::size_t kTiling>
struct SwapAbGroup {
  static constexpr int kThreads = SwapAbLayout<kTiling>::kGroupThreads;

  __device__ static int number() {
    return SwapAbLayout<kTiling>::kGroups == 1 ? 0 : static_cast<int>(threadIdx.x) / kThreads;
  }
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
  __device__ static int lane() { return thread() % 32; }
  __device__ static int operand() { return thread() / kWarpgroupThreads; }
  __device__ static int warp() { return thread() % kWarpgroupThreads / 32; }  ///< of the warpgroup

  /// The pair of the block that a lane's sum belongs to.
  __device__ static int pair_of_sum(int i) { return i / 4 * 8 + lane() % 4 * 2 + i % 2; }

  /// All threads of the group wait for each other.
  __device__ static void synchronize() {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + number()), "n"(kThreads) : "memory");
  }
};

__device__ __forceinline__ const SwapAbProduct& product_of(const SwapAbArgs& args,
                                                           SwapAbStep step) {
  return step == SwapAbStep::kGateUp ? args.gate_up : args.down;
}

/// Adds to a counter. Whoever waits for the count sees what this thread wrote, and the threads that
/// it synchronised with. A release takes less time than a __threadfence(), which also invalidates
/// the L1 cache, before an atomicAdd().
__device__ __forceinline__ void count(std::uint32_t* counter, std::uint32_t number = 1) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(number) : "memory");
}

/// The same, and gives the count before. What others wrote that have counted is then visible to
/// this thread, and to those that it synchronises with.
__device__ __forceinline__ std::uint32_t count_and_read(std::uint32_t* counter) {
  std::uint32_t before = 0;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

/// Waits until others have counted to `count`. What they wrote before is then visible to this
/// thread, and to those that it synchronises with.
__device__ __forceinline__ void wait_for_count(const std::uint32_t* counter, std::uint32_t count) {
  std::uint32_t found = 0;
  do {
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
  } while (found != count);
}

/// Takes the next tiles, of which no other CTA takes the same.
__device__ __forceinline__ std::uint32_t take(const SwapAbArgs& args) {
  return atomicAdd(args.taken, 1);
}

/// One thread publishes what it has taken, and takes more once that is released, until nothing is
/// left.
template <std::size_t kTiling>
__device__ __forceinline__ void take_tiles(const SwapAbArgs& args, SwapAbShared<kTiling> shared,
                                           std::uint32_t taken) {
  const std::uint32_t end = num_to_take<kTiling>(args, shared.num_blocks());
  for (std::uint32_t parity = 0;; parity ^= 1) {
    shared.taken() = taken;
    arrive(shared.taken_full());
    if (taken >= end) return;
    wait(shared.taken_empty(), parity);
    taken = take(args);
  }
}

/// What take_tiles took, as every other thread reads it.
template <std::size_t kTiling>
class Taken {
 public:
  __device__ __forceinline__ Taken(const SwapAbArgs& args, SwapAbShared<kTiling> shared)
      : args_(args), shared_(shared) {}

  /// The next tiles, which are to be released before others can be taken.
  __device__ __forceinline__ SwapAbTiles read() {
    wait(shared_.taken_full(), parity_);
    parity_ ^= 1;
    return tiles_of(args_, shared_, shared_.taken());
  }

  __device__ __forceinline__ void release() const { arrive(shared_.taken_empty()); }

 private:
  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
  std::uint32_t parity_ = 0;
};

}  // namespace tessera::cuda
