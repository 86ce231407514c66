// The warpgroups of the kernel that exchanges operands which multiply.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/combine.cuh"
#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/swap_ab_quantizer.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/fused_experts/swap_ab_writer.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// A group that multiplies, and writes the results. Where there are two, they take tiles in turns,
/// so that one multiplies while the other writes. Each warpgroup of a group multiplies one operand;
/// of a tile with one, the second passes the stages on. With few pairs, most of the time of a wgmma
/// is latency, and the two warpgroups overlap theirs.
template <Scaling kScaling, typename T, std::size_t kTiling>
class Multiplier {
 public:
  __device__ __forceinline__ Multiplier(const SwapAbArgs& args, SwapAbShared<kTiling> shared)
      : args_(args),
        shared_(shared),
        taken_(args, shared),
        turn_parity_(Group::number() == 0 ? 1 : 0) {}

  __device__ __forceinline__ void run() {
    int group_of_tile = 0;
    // What this CTA may take of the down product before it has rows for it: a share of its own.
    std::uint32_t share =
        (shared_.num_blocks() * args_.down.takes_per_block + gridDim.x - 1) / gridDim.x;
    [[maybe_unused]] bool has_quantized_rows = false;
    while (true) {
      const SwapAbTiles tiles = taken_.read();
      if (tiles.step > SwapAbStep::kDown) count_down_tiles();
      if (tiles.step == SwapAbStep::kEnd) return;
      if (tiles.step == SwapAbStep::kCombine) {
        taken_.release();
        if (group_of_tile == Group::number()) combine(tiles.block);
        group_of_tile = (group_of_tile + 1) % Layout::kGroups;
        continue;
      }
      // The next tiles are taken once the last weights of these are nearly on the way, 2 stages
      // before, which hides the time that it takes; and, unless these are a single stage, not
      // before rows are there, so that a CTA that waits for rows takes no tiles that others could
      // compute. It takes tiles of its share at once, so that their weights come meanwhile.
      const std::int32_t num_stages = num_stages_of(tiles.step);
      constexpr auto kAhead = static_cast<std::int32_t>(Layout::kStages) + 2;
      const std::int32_t all_stages = tiles.num_tiles * num_stages;
      std::int32_t release_at = min(max(1, all_stages - kAhead), all_stages - 1);
      const bool is_of_share = tiles.step == SwapAbStep::kDown && share > 1;
      if (is_of_share) {
        --share;
        release_at = -1;
      }
      const int releasing_group = (group_of_tile + release_at / num_stages) % Layout::kGroups;
      if (is_of_share || releasing_group != Group::number()) taken_.release();
      if constexpr (kScaling == Scaling::kRows) {
        if (tiles.step == SwapAbStep::kDown && !has_quantized_rows) {
          Quantizer<kScaling, kTiling>(args_, shared_).quantize_parts();
          has_quantized_rows = true;
        }
      }
      for (std::int32_t tile = 0; tile < tiles.num_tiles;
           ++tile, group_of_tile = (group_of_tile + 1) % Layout::kGroups) {
        if (group_of_tile == Group::number()) {
          compute(tiles, tile, release_at - tile * num_stages);
        } else {
          // Of the other group. These stages are read before this group's next turn, so that the
          // parity of a barrier never means an earlier phase.
          at_.advance_by(static_cast<std::uint32_t>(num_stages));
        }
      }
    }
  }

 private:
  using Group = SwapAbGroup<kTiling>;
  static constexpr bool kIsFp8 = kScaling != Scaling::kNone;
  using Operand = OperandOf<kScaling, T>;
  using Layout = SwapAbLayout<kTiling>;
  using Writer = SwapAbWriter<kScaling, T, kTiling>;
  static constexpr int kWgmmasPerStep = kLineBytes / 32;  // each multiplies 32 bytes of a line
  using Stage = typename SwapAbShared<kTiling>::Stage;

  __device__ __forceinline__ void combine(std::uint32_t first_part) const {
    // Warpgroups for which there is no part compute the last one, too: all threads of
    // the group have to wait together.
    const std::uint32_t part =
        min(first_part + static_cast<std::uint32_t>(Group::operand()), args_.num_combine_parts - 1);
    const auto thread_of_part = static_cast<std::uint32_t>(Group::thread() % kWarpgroupThreads);
    combine_part<T, 8>(args_.combine, part, thread_of_part, [&] {
      if (Group::thread() == 0) {
        wait_for_count(args_.down_done, shared_.num_blocks() * args_.down.args.num_columns);
      }
      Group::synchronize();
    });
  }

  /// Counts the tiles of the down product that this group has written. Only the sum over slots
  /// waits for these, so that a group counts all of its own at once, when the next take is no tile
  /// of a product: to count takes about as long as a short tile. To learn what the next take is, it
  /// waits for nothing that waits for the sum.
  __device__ __forceinline__ void count_down_tiles() {
    if (Group::thread() == 0 && num_down_tiles_ > 0) count(args_.down_done, num_down_tiles_);
    num_down_tiles_ = 0;
  }

  /// Stages of a tile.
  __device__ __forceinline__ std::int32_t num_stages_of(SwapAbStep step) const {
    const std::int32_t depth = product_of(args_, step).args.depth;
    return with_rows<kTiling>(step, [&]<int kRows>() {
      constexpr int kDepth = SwapAbSteps<kRows>::kNumber * kDepthOf<kScaling>;
      return (depth + kDepth - 1) / kDepth;
    });
  }

  __device__ __forceinline__ void compute(const SwapAbTiles& tiles, std::int32_t tile,
                                          std::int32_t release_at) {
    const std::int32_t first_output =
        tiles.first_output + tile * outputs_of(product_of(args_, tiles.step));
    const Writer writer(args_, shared_, tiles, first_output);
    writer.begin(tile < Layout::kGroups);  // groups take turns, whichever has the first tile
    if constexpr (Layout::kGroups > 1) {
      wait(shared_.turn(Group::number()), turn_parity_);
      turn_parity_ ^= 1;
    }
    if constexpr (Layout::kPairsAtOnce == Layout::kPairs) {
      multiply<8>(tiles, first_output, release_at, writer);
      Group::synchronize();
      writer.write(0);
    } else {
      float sums[Layout::kPairs / 2] = {};
      multiply_stages_of<Layout::kPairs>(tiles, first_output, release_at, sums, [] {});
      for (int first = 0; first < tiles.num_pairs; first += Layout::kPairsAtOnce) {
        if (first > 0) Group::synchronize();  // the part before is written
        writer.share_part(sums, first / Layout::kPairsAtOnce);
        Group::synchronize();
        writer.write(first);
      }
    }
    Group::synchronize();
    if (tiles.step == SwapAbStep::kDown) {
      ++num_down_tiles_;
      return;
    }
    if constexpr (kScaling == Scaling::kBlocks) {
      if (!Quantizer<kScaling, kTiling>(args_, shared_).finish(tiles, first_output)) return;
    }
    if constexpr (kScaling == Scaling::kRows) {
      if (args_.quantised.largest != nullptr) writer.note_largest(args_.quantised.largest);
    }
    if (Group::thread() != 0) return;
    std::uint32_t* const done =
        kScaling == Scaling::kRows ? args_.quantised.tiles_done : args_.gate_up_done;
    count(done + tiles.block);
  }

  /// Leaves the sums in shared memory, and releases what was taken before the stage `release_at`,
  /// if there is one. There is code for some numbers of columns, doubling.
  template <int kColumns>
  __device__ __forceinline__ void multiply(const SwapAbTiles& tiles, std::int32_t first_output,
                                           std::int32_t release_at, const Writer& writer) {
    if constexpr (kColumns < Layout::kPairs) {
      if (tiles.num_pairs > kColumns) {
        return multiply<2 * kColumns>(tiles, first_output, release_at, writer);
      }
    }
    float sums[kColumns / 2] = {};
    multiply_stages_of<kColumns>(tiles, first_output, release_at, sums,
                                 [&] { writer.template share<0>(sums); });
  }

  /// Adds the products of a tile's stages up, gives the turn to the other group, and calls
  /// `finish` if there is an operand for this warpgroup.
  template <int kColumns, typename Finish>
  __device__ __forceinline__ void multiply_stages_of(const SwapAbTiles& tiles,
                                                     std::int32_t first_output,
                                                     std::int32_t release_at,
                                                     float (&sums)[kColumns / 2],
                                                     const Finish& finish) {
    const std::int32_t num_stages = num_stages_of(tiles.step);
    with_rows<kTiling>(tiles.step, [&]<int kRows>() {
      if (Group::operand() * kSwapAbOperandRows >= kRows) {
        pass_stages(num_stages, release_at);
      } else {
        if constexpr (kIsFp8) {
          OfRows of_rows{};
          if constexpr (kScaling == Scaling::kRows) of_rows = scales_of_rows(tiles, first_output);
          multiply_scaled_stages<kRows>(num_stages, release_at, of_rows, sums);
        } else {
          multiply_stages<kRows>(num_stages, release_at, sums);
        }
        give_turn();
        finish();
      }
    });
  }

  /// The stages of a tile that has no operand for this warpgroup.
  __device__ __forceinline__ void pass_stages(std::int32_t num_stages, std::int32_t release_at) {
    for (std::int32_t stage = 0; stage < num_stages; ++stage) {
      if (stage == release_at) taken_.release();
      wait(shared_.full(at_), at_.parity);
      __syncwarp();  // no lane may still wait for this phase when the stage is filled again
      release(at_);
      at_.advance();
    }
    give_turn();
  }

  template <int kRows, int kSums>
  __device__ __forceinline__ void multiply_stages(std::int32_t num_stages, std::int32_t release_at,
                                                  float (&sums)[kSums]) {
    Stage previous;
    for (std::int32_t stage = 0; stage < num_stages; ++stage) {
      if (stage == release_at) taken_.release();
      wait(shared_.full(at_), at_.parity);
      fence_async_proxy();  // for what cp.async wrote
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < SwapAbSteps<kRows>::kNumber; ++step) {
#pragma unroll
        for (int k = 0; k < kWgmmasPerStep; ++k) {
          multiply_part<kRows>(step, k, stage > 0 || step > 0 || k > 0, sums);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (stage > 0) release(previous);
      previous = at_;
      at_.advance();
    }
    wgmma_wait<0>();
    release(previous);
  }

  /// The scales of the lane's two rows of the weights, where scales are of whole rows.
  __device__ __forceinline__ OfRows scales_of_rows(const SwapAbTiles& tiles,
                                                   std::int32_t first_output) const {
    const Fp8ProductArgs& args = product_of(args_, tiles.step).args;
    const int first =
        kSwapAbOperandRows * Group::operand() + 16 * Group::warp() + Group::lane() / 4;
    OfRows scales;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Sixteen rows are eight of gate and eight of up. Nothing reads those after the last.
      const int row = args.is_gated ? first / (2 * kSwapAbRun) * kSwapAbRun + first % kSwapAbRun
                                    : first + kSwapAbRun * i;
      const std::int32_t output = min(first_output + row, args.num_outputs - 1);
      scales.of[i] = *args.weight_scales.of_row(
          tiles.expert, args.is_gated ? gated_row(args, output, i == 1) : output);
    }
    return scales;
  }

  /// The same as multiply_stages() of numbers in float8_e4m3fn. Each step has sums of its own,
  /// which are added at the end of the stage. The steps take turns: most of the time of a wgmma is
  /// latency.
  template <int kRows, int kSums>
  __device__ __forceinline__ void multiply_scaled_stages(std::int32_t num_stages,
                                                         std::int32_t release_at,
                                                         const OfRows& of_rows,
                                                         float (&sums)[kSums]) {
    constexpr int kSteps = SwapAbSteps<kRows>::kNumber;
    for (std::int32_t stage = 0; stage < num_stages; ++stage) {
      if (stage == release_at) taken_.release();
      wait(shared_.full(at_), at_.parity);
      fence_async_proxy();  // for what cp.async wrote
      float of_steps[kSteps][kSums];
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kWgmmasPerStep; ++k) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          multiply_part<kRows>(step, k, k > 0, of_steps[step]);
        }
      }
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if constexpr (kScaling == Scaling::kBlocks) {
          add_scaled(step, of_steps[step], sums);
        } else {
#pragma unroll
          for (int i = 0; i < kSums; ++i) sums[i] += of_steps[step][i];
        }
      }
      if constexpr (kScaling == Scaling::kRows) {
        if (stage + 1 == num_stages) scale(of_rows, sums);
      }
      __syncwarp();  // all lanes have read the scales
      release(at_);
      at_.advance();
    }
  }

  /// Multiplies the sums by scales of whole rows: of the weights, and of the pairs, which the stage
  /// has.
  template <int kSums>
  __device__ __forceinline__ void scale(const OfRows& of_rows, float (&sums)[kSums]) const {
    const float* const of_pairs = shared_.scales(at_, 0);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums[i] *= of_rows.of[i % 4 / 2] * of_pairs[Group::pair_of_sum(i)];
    }
  }

  /// Adds the sums of a step, scaled. A lane's rows are of gate and of up, or both have one scale.
  template <int kSums>
  __device__ __forceinline__ void add_scaled(int step, const float (&of_step)[kSums],
                                             float (&sums)[kSums]) const {
    const float* const of_pairs = shared_.scales(at_, step);
    const float* const of_rows = of_pairs + Layout::kPairs;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const float scale = of_rows[i % 4 / 2] * of_pairs[Group::pair_of_sum(i)];
      sums[i] = __fmaf_rn(scale, of_step[i], sums[i]);
    }
  }

  __device__ __forceinline__ void give_turn() const {
    if constexpr (Layout::kGroups > 1) {
      if (Group::lane() == 0) arrive(shared_.turn(Group::number() ^ 1));
    }
  }

  /// The part of this number of a step's products.
  template <int kRows, int kSums>
  __device__ __forceinline__ void multiply_part(int step, int part, bool adds,
                                                float (&sums)[kSums]) const {
    // Of a tile of 32 rows, wgmma also multiplies the 32 lines after them, whatever they hold:
    // nothing reads those sums.
    const std::uint64_t weights =
        tile_descriptor(shared_.weights(at_) + step * SwapAbSteps<kRows>::kWeightBytes +
                        Group::operand() * kSwapAbOperandRows * kLineBytes);
    const std::uint64_t rows = tile_descriptor(shared_.rows(at_) + step * Layout::kStepRowBytes);
    constexpr int kWordsPerWgmma = 2;
    wgmma_64<Operand, 2 * kSums>(weights + part * kWordsPerWgmma, rows + part * kWordsPerWgmma,
                                 adds, sums);
  }

  __device__ __forceinline__ void release(const Stage& at) const {
    if (Group::lane() == 0) arrive(shared_.empty(at));
  }

  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
  Taken<kTiling> taken_;
  Stage at_;
  std::uint32_t turn_parity_;
  std::uint32_t num_down_tiles_ = 0;  ///< written, and not counted yet
};

}  // namespace tessera::cuda
