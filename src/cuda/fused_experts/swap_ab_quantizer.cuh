// How the warpgroups of the kernel that exchanges operands quantise the intermediate.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/fp8_word.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/fp8.cuh"

namespace tessera::cuda {

/// Quantises outputs of the gate-up product, which are in float32, once they are all there. With
/// scales of blocks, the group of threads that writes the last tile of 128 outputs does it.
template <Scaling kScaling, std::size_t kTiling>
class Quantizer {
 public:
  __device__ __forceinline__ Quantizer(const SwapAbArgs& args, SwapAbShared<kTiling> shared)
      : args_(args), shared_(shared) {}

  /// After a tile is written: quantises what it completes, by all threads of the group. Returns
  /// false if other tiles are missing.
  __device__ __forceinline__ bool finish(const SwapAbTiles& tiles,
                                         std::int32_t first_output) const {
    const std::uint32_t outputs = static_cast<std::uint32_t>(first_output) / core::kScaleBlock;
    if (!completes_group(tiles, outputs)) return false;
    quantize_group(tiles, outputs);
    Group::synchronize();
    return true;
  }

  /// With scales of rows: takes parts of blocks, and quantises each once its rows are complete,
  /// until none is left. Whoever computes a tile that has to wait for parts has taken what was left
  /// of them before, or others have, which run.
  __device__ __forceinline__ void quantize_parts() const {
    const SwapAbQuantised& quantised = args_.quantised;
    const std::uint32_t num_parts = shared_.num_blocks() * quantised.parts_per_block;
    while (true) {
      if (Group::thread() == 0) {
        shared_.message(Group::number()) = atomicAdd(quantised.parts_taken, 1);
      }
      Group::synchronize();
      const std::uint32_t part = shared_.message(Group::number());
      if (part >= num_parts) return;
      const std::uint32_t block = part / quantised.parts_per_block;
      if (Group::thread() == 0) {
        wait_for_count(quantised.tiles_done + block, args_.gate_up.args.num_columns);
      }
      Group::synchronize();
      quantize_part(
          shared_.blocks()[block],
          static_cast<std::int32_t>(part % quantised.parts_per_block) * kSwapAbQuantisedOutputs);
      Group::synchronize();
      if (Group::thread() == 0) count(args_.gate_up_done + block);
    }
  }

 private:
  using Group = SwapAbGroup<kTiling>;
  using Layout = SwapAbLayout<kTiling>;
  using Word = Fp8Word<float>;

  /// Whether this tile is the last one of its group of outputs that is written.
  __device__ __forceinline__ bool completes_group(const SwapAbTiles& tiles,
                                                  std::uint32_t outputs) const {
    const SwapAbQuantised& quantised = args_.quantised;
    if (Group::thread() == 0) {
      const std::uint32_t num_tiles =
          min(quantised.tiles_per_group,
              args_.gate_up.args.num_columns - outputs * quantised.tiles_per_group);
      const std::uint32_t before =
          count_and_read(quantised.tiles_done + tiles.block * quantised.num_groups + outputs);
      shared_.message(Group::number()) = before + 1 == num_tiles ? 1 : 0;
    }
    Group::synchronize();
    return shared_.message(Group::number()) != 0;
  }

  /// Sixteen outputs of a pair from `first` on, before they are quantised; zeros after the last.
  __device__ __forceinline__ Word outputs_at(std::int64_t pair, std::int32_t first) const {
    const ProductArgs& args = args_.gate_up.args;
    return Word(static_cast<const float*>(args.output) + pair * args.output_stride + first,
                first < args.num_outputs);
  }

  __device__ __forceinline__ void write_quantized(std::int64_t pair, std::int32_t first,
                                                  const uint4& bytes) const {
    const std::int64_t row = pair * args_.down.args.row_stride;
    *reinterpret_cast<uint4*>(args_.quantised.values + row + first) = bytes;
  }

  /// Quantises a group of 128 outputs of all pairs, eight threads for each.
  __device__ __forceinline__ void quantize_group(const SwapAbTiles& tiles,
                                                 std::uint32_t outputs) const {
    constexpr int kThreads = Fp8GroupWord::kThreads;
    static_assert(Group::kThreads / kThreads >= Layout::kPairs);
    const int own = Group::thread() / kThreads;
    const std::int64_t pair = pair_of(shared_, tiles, min(own, tiles.num_pairs - 1));
    const auto first = static_cast<std::int32_t>(outputs * core::kScaleBlock) +
                       Group::thread() % kThreads * Word::kElements;
    const Fp8GroupWord word(outputs_at(pair, first), args_.quantised.use_ue8m0);
    if (own >= tiles.num_pairs || first >= args_.gate_up.args.num_outputs) return;
    write_quantized(pair, first, word.bytes);
    if (Group::thread() % kThreads == 0) {
      args_.quantised.scales[pair * args_.down.args.row_scale_stride + outputs] = word.scale;
    }
  }

  /// Quantises outputs of all pairs of a block, from `first_output` on. Each thread has 16 of a
  /// pair at a time.
  __device__ __forceinline__ void quantize_part(const SwapAbBlock& block,
                                                std::int32_t first_output) const {
    constexpr int kWordsPerPair = kSwapAbQuantisedOutputs / Word::kElements;
    const SwapAbQuantised& quantised = args_.quantised;
#pragma unroll 2
    for (int item = Group::thread(); item < block.num_pairs * kWordsPerPair;
         item += Group::kThreads) {
      const std::int32_t first = first_output + item % kWordsPerPair * Word::kElements;
      if (first >= args_.gate_up.args.num_outputs) continue;
      const std::int64_t pair = shared_.pairs()[block.first + item / kWordsPerPair];
      const Word word = outputs_at(pair, first);
      if (quantised.scale != nullptr) {
        const float scale = *quantised.scale;
        const auto divide = [&](float value) { return __fdiv_rn(value, scale); };
        write_quantized(pair, first, word.quantized(divide));
        continue;
      }
      const float scale = fp8_scale_for(__ldcg(quantised.largest + pair), quantised.use_ue8m0);
      const Fp8Divisor divisor = fp8_divisor(scale);
      const auto divide = [&](float value) { return quotient(value, divisor); };
      write_quantized(pair, first, word.quantized(divide));
      if (first == 0) quantised.scales[pair] = scale;
    }
  }

  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
};

}  // namespace tessera::cuda
