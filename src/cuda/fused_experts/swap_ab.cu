// This kernel runs the whole layer where experts have few pairs. Its time is then the time to read
// the weights. It exchanges the operands of wgmma: 64 rows of the weights are multiplied by the
// pairs of an expert, so that a tile has hardly more columns than pairs. Each CTA sorts the pairs
// by expert for itself. Then the CTAs take work from one counter: first the tiles of the gate-up
// product, then the tiles of the down product, then parts of the sum over slots. One warp copies
// weights without a pause: it copies those of the down product while others compute its rows.
//
// No CTA waits for one that has not started: a tile waits for tiles before it alone, which have
// been taken by CTAs that run, and these compute theirs in ascending order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstdint>
#include <utility>

#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/fused_experts/swap_ab_multiplier.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/tma.cuh"

namespace tessera::cuda {
namespace {

/// Copies the weights of all tiles, by one warp.
template <std::size_t kTiling>
__device__ __forceinline__ void copy_weights(const SwapAbArgs& args, SwapAbShared<kTiling> shared) {
  Taken<kTiling> taken(args, shared);
  typename SwapAbShared<kTiling>::Stage at;
  while (true) {
    const SwapAbTiles tiles = taken.read();
    taken.release();
    if (tiles.step == SwapAbStep::kEnd) return;
    if (tiles.step == SwapAbStep::kCombine) continue;
    const SwapAbProduct& product = product_of(args, tiles.step);
    with_rows<kTiling>(tiles.step, [&]<int kRows>() {
      using Steps = SwapAbSteps<kRows>;
      for (std::int32_t tile = 0; tile < tiles.num_tiles; ++tile) {
        const std::int32_t output = tiles.first_output + tile * outputs_of(product);
        for (std::int32_t begin = 0; begin < product.args.depth; begin += Steps::kDepth) {
          wait(shared.empty(at), at.parity ^ 1);
          if (threadIdx.x % 32 == 0) {
            arrive_and_expect(shared.full(at), kSwapAbWeightBytes);
#pragma unroll
            for (int step = 0; step < Steps::kNumber; ++step) {
              copy_box(shared.weights(at) + step * Steps::kWeightBytes, &product.weights,
                       shared.full(at), begin + step * kStageDepth, 0, 0, output / kSwapAbRun,
                       tiles.expert);
            }
          }
          __syncwarp();
          at.advance();
        }
      }
    });
  }
}

/// The warps that gather the rows of pairs, of x or of the intermediate.
template <std::size_t kTiling>
class RowsGatherer {
 public:
  __device__ __forceinline__ RowsGatherer(const SwapAbArgs& args, SwapAbShared<kTiling> shared)
      : args_(args), shared_(shared), taken_(args, shared) {}

  __device__ __forceinline__ void run() {
    while (true) {
      const SwapAbTiles tiles = taken_.read();
      taken_.release();
      if (tiles.step == SwapAbStep::kEnd) return;
      if (tiles.step == SwapAbStep::kCombine) continue;
      if (tiles.step == SwapAbStep::kDown) {
        if (threadIdx.x % 32 == 0) {
          wait_for_count(args_.gate_up_done + tiles.block, args_.gate_up.args.num_columns);
        }
        __syncwarp();
      }
      gather(tiles);
    }
  }

 private:
  static constexpr int kLinesAtOnce = static_cast<int>(kGatherThreads) / 8;
  static constexpr std::uint32_t kStepBytes = SwapAbLayout<kTiling>::kStepRowBytes;
  static constexpr int kLines = (SwapAbLayout<kTiling>::kPairs + kLinesAtOnce - 1) / kLinesAtOnce;

  __device__ static int thread() { return static_cast<int>(threadIdx.x - 32 * (kCopyingWarp + 1)); }
  __device__ static int word() { return thread() % 8; }
  __device__ static int line() { return thread() / 8; }

  __device__ __forceinline__ void gather(const SwapAbTiles& tiles) {
    const ProductArgs& args = product_of(args_, tiles.step).args;
    const std::uint16_t* sources[kLines];
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int row = line() + i * kLinesAtOnce;
      sources[i] = nullptr;
      if (row >= tiles.num_pairs) continue;
      const std::uint32_t pair = shared_.pairs()[tiles.first_pair + row];
      sources[i] = static_cast<const std::uint16_t*>(args.rows) +
                   std::int64_t{divide(pair, args.slots_per_row)} * args.row_stride +
                   word() * kWordElements;
    }
    with_rows<kTiling>(tiles.step, [&]<int kRows>() {
      using Steps = SwapAbSteps<kRows>;
      for (std::int32_t tile = 0; tile < tiles.num_tiles; ++tile) {
        for (std::int32_t begin = 0; begin < args.depth; begin += Steps::kDepth) {
          wait(shared_.empty(at_), at_.parity ^ 1);
#pragma unroll
          for (int step = 0; step < Steps::kNumber; ++step) {
            copy_words(sources, shared_.rows(at_) + step * kStepBytes, begin + step * kStageDepth,
                       args.depth);
          }
          arrive_after_copies(shared_.full(at_));
          at_.advance();
        }
      }
    });
  }

  /// What the lines of no pair hold does not matter: no sum of a pair has terms of it.
  __device__ __forceinline__ void copy_words(const std::uint16_t* const (&sources)[kLines],
                                             std::uint32_t rows, std::int32_t begin,
                                             std::int32_t depth) const {
    const bool is_within = begin + word() * kWordElements < depth;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (sources[i] == nullptr) break;
      const int row = line() + i * kLinesAtOnce;
      const auto place = static_cast<std::uint32_t>(row * 8 + (word() ^ row % 8));
      copy_word_async(rows + place * kWordBytes, sources[i] + begin, is_within);
    }
  }

  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
  Taken<kTiling> taken_;
  typename SwapAbShared<kTiling>::Stage at_;
};

__global__ void __launch_bounds__(kSwapAbClearThreads)
    swap_ab_clear(const __grid_constant__ SwapAbCounters args) {
  pdl_wait();
  // Not before, as the layer reads the ids as soon as it starts.
  __threadfence();
  pdl_launch_dependents();
  for (std::uint32_t i = threadIdx.x; i < args.length; i += kSwapAbClearThreads) {
    args.counters[i] = 0;
  }
}

template <std::size_t kTiling>
__device__ __forceinline__ void init_barriers(SwapAbShared<kTiling> shared) {
  for (typename SwapAbShared<kTiling>::Stage at; at.parity == 0; at.advance()) {
    init_barrier(shared.full(at), 1 + kGatherThreads);
    init_barrier(shared.empty(at), kWarpsOfGroup);
  }
  init_barrier(shared.taken_full(), 1);
  init_barrier(shared.taken_empty(), kReadingThreads);
  for (int group = 0; group < kSwapAbGroups; ++group) {
    init_barrier(shared.turn(group), kWarpsOfGroup);
  }
  fence_barriers();
}

template <typename T, std::size_t kTiling>
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
  pdl_wait();
  if (warp < kMultiplyWarps) {
    Multiplier<T, kTiling>(args, shared).run();
  } else if (warp == kTakingWarp) {
    if (threadIdx.x % 32 == 0) take_tiles(args, shared, taken);
  } else if (warp == kCopyingWarp) {
    copy_weights<kTiling>(args, shared);
  } else {
    RowsGatherer<kTiling>(args, shared).run();
  }
}

}  // namespace

const void* swap_ab_clear_kernel() { return reinterpret_cast<const void*>(&swap_ab_clear); }

const void* swap_ab_kernel(bool is_bfloat16, std::size_t tiling) {
  const auto of = [&]<typename T, std::size_t... kTilings>(std::index_sequence<kTilings...>) {
    const std::array<const void*, kSwapAbTilings.size()> kernels{
        reinterpret_cast<const void*>(&swap_ab_layer<T, kTilings>)...};
    return kernels[tiling];
  };
  constexpr std::make_index_sequence<kSwapAbTilings.size()> kAll;
  return is_bfloat16 ? of.operator()<__nv_bfloat16>(kAll) : of.operator()<__half>(kAll);
}

}  // namespace tessera::cuda
