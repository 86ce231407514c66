// The warps of the kernel that exchanges operands which gather the rows of pairs.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/mbarrier.cuh"

namespace tessera::cuda {

/// Copies rows of x and of the intermediate to the stages. In float8_e4m3fn it also copies the
/// scales of these rows. With block scales it copies the scales of the weights, too.
template <Scaling kScaling, std::size_t kTiling>
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
          wait_for_count(args_.gate_up_done + tiles.block, args_.gate_up_parts);
        }
        __syncwarp();
      }
      gather(tiles);
    }
  }

 private:
  using Element = ElementOf<kScaling>;
  static constexpr int kDepth = kDepthOf<kScaling>;
  static constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Element));
  static constexpr int kLinesAtOnce = static_cast<int>(kGatherThreads) / 8;
  static constexpr std::uint32_t kStepBytes = SwapAbLayout<kTiling>::kStepRowBytes;
  static constexpr int kLines = (SwapAbLayout<kTiling>::kPairs + kLinesAtOnce - 1) / kLinesAtOnce;

  __device__ static int thread() { return static_cast<int>(threadIdx.x - 32 * (kCopyingWarp + 1)); }
  __device__ static int word() { return thread() % 8; }
  __device__ static int line() { return thread() / 8; }

  /// The words that this thread copies of each step; null: no pair.
  struct Sources {
    const Element* of[kLines];
  };

  __device__ __forceinline__ void gather(const SwapAbTiles& tiles) {
    const SwapAbProduct& product = product_of(args_, tiles.step);
    const Fp8ProductArgs& args = product.args;
    Sources sources;
    const float* row_scales[kLines];
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int row = line() + i * kLinesAtOnce;
      sources.of[i] = nullptr;
      if (row >= tiles.num_pairs) continue;
      const auto from = static_cast<std::int64_t>(
          divide(shared_.pairs()[tiles.first_pair + row], args.slots_per_row));
      sources.of[i] =
          static_cast<const Element*>(args.rows) + from * args.row_stride + word() * kPerWord;
      if constexpr (kScaling != Scaling::kNone) {
        row_scales[i] = args.row_scales + from * args.row_scale_stride;
      }
    }
    with_rows<kTiling>(tiles.step, [&]<int kRows>() {
      using Steps = SwapAbSteps<kRows>;
      for (std::int32_t tile = 0; tile < tiles.num_tiles; ++tile) {
        [[maybe_unused]] const float* const weight_scales =
            kScaling == Scaling::kBlocks
                ? scales_of(args, tiles.expert, tiles.first_output + tile * outputs_of(product))
                : nullptr;
        for (std::int32_t begin = 0; begin < args.depth; begin += Steps::kNumber * kDepth) {
          wait(shared_.empty(at_), at_.parity ^ 1);
#pragma unroll
          for (int step = 0; step < Steps::kNumber; ++step) {
            copy_words(sources, shared_.rows(at_) + step * kStepBytes, begin + step * kDepth,
                       args.depth);
            if constexpr (kScaling == Scaling::kBlocks) {
              const std::int32_t first = begin + step * kDepth;
              const bool is_within = first < args.depth;
              const std::int32_t block = is_within ? first / kDepth : 0;
              copy_row_scales(sources, row_scales, step, block, is_within);
              copy_weight_scales(weight_scales, step, block, is_within);
            }
          }
          // In every stage, so that the last one, which is read, needs no branch.
          if constexpr (kScaling == Scaling::kRows) {
            copy_row_scales(sources, row_scales, 0, 0, true);
          }
          arrive_after_copies(shared_.full(at_));
          at_.advance();
        }
      }
    });
  }

  /// What the lines of no pair hold does not matter: no sum of a pair has terms of it.
  __device__ __forceinline__ void copy_words(const Sources& sources, std::uint32_t rows,
                                             std::int32_t begin, std::int32_t depth) const {
    const bool is_within = begin + word() * kPerWord < depth;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (sources.of[i] == nullptr) break;
      const int row = line() + i * kLinesAtOnce;
      const auto place = static_cast<std::uint32_t>(row * 8 + (word() ^ row % 8));
      copy_word_async(rows + place * kWordBytes, sources.of[i] + begin, is_within);
    }
  }

  /// The scales of the rows of gate, or of up, of a tile's weights, whichever this thread copies.
  __device__ static const float* scales_of(const Fp8ProductArgs& args, std::int32_t expert,
                                           std::int32_t first_output) {
    const bool is_up = args.is_gated && word() % 2 == 1;
    return args.weight_scales.of_row(
        expert, args.is_gated ? gated_row(args, first_output, is_up) : first_output);
  }

  /// Copies the scales of a block of terms, each by one thread. A step after the last block has
  /// zeros alone, and gets scales of 0: times an infinite one, zeros would be NaNs.
  __device__ __forceinline__ void copy_row_scales(const Sources& sources,
                                                  const float* const (&row_scales)[kLines],
                                                  int step, std::int32_t block, bool given) const {
    if (word() != 0) return;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (sources.of[i] == nullptr) break;
      copy_float_async(scale_at(step, line() + i * kLinesAtOnce), row_scales[i] + block, given);
    }
  }

  /// The same of the weights, by two threads.
  __device__ __forceinline__ void copy_weight_scales(const float* weight_scales, int step,
                                                     std::int32_t block, bool given) const {
    if (thread() >= 2) return;
    copy_float_async(scale_at(step, kPairs + thread()), weight_scales + block, given);
  }

  __device__ __forceinline__ std::uint32_t scale_at(int step, int i) const {
    return shared_address(shared_.scales(at_, step) + i);
  }

  static constexpr int kPairs = SwapAbLayout<kTiling>::kPairs;

  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
  Taken<kTiling> taken_;
  typename SwapAbShared<kTiling>::Stage at_;
};

}  // namespace tessera::cuda
