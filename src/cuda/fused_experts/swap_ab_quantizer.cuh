// How the warpgroups of the kernel that exchanges operands quantise the intermediate.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/fp8_word.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/fp8.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// Quantises the outputs of the gate-up product, which are in float32, once they are all there: by
/// the group of threads that writes the last tile of them.
template <Scaling kScaling, std::size_t kTiling>
class Quantizer : SwapAbGroup<kTiling> {
 public:
  __device__ __forceinline__ Quantizer(const SwapAbArgs& args, SwapAbShared<kTiling> shared)
      : args_(args), shared_(shared) {}

  /// After a tile is written: quantises what it completes, by all threads of the group. Returns
  /// false if other tiles are missing.
  __device__ __forceinline__ bool finish(const SwapAbTiles& tiles,
                                         std::int32_t first_output) const {
    const std::uint32_t outputs = group_of(first_output);
    if (!completes_group(tiles, outputs)) return false;
    if constexpr (kScaling == Scaling::kBlocks) {
      quantize_group(tiles, outputs);
    } else {
      quantize_rows(tiles);
    }
    synchronize();
    return true;
  }

 private:
  using Group = SwapAbGroup<kTiling>;
  using Group::group;
  using Group::lane;
  using Group::synchronize;
  using Group::thread;
  using Layout = SwapAbLayout<kTiling>;
  using Word = Fp8Word<float>;

  /// The group of outputs that are quantised together.
  __device__ static std::uint32_t group_of(std::int32_t output) {
    if constexpr (kScaling == Scaling::kRows) return 0;
    return static_cast<std::uint32_t>(output) / core::kScaleBlock;
  }

  /// Whether this tile is the last one of its group of outputs that is written.
  __device__ __forceinline__ bool completes_group(const SwapAbTiles& tiles,
                                                  std::uint32_t outputs) const {
    const SwapAbQuantised& quantised = args_.quantised;
    if (thread() == 0) {
      const std::uint32_t num_tiles =
          min(quantised.tiles_per_group,
              args_.gate_up.args.num_columns - outputs * quantised.tiles_per_group);
      __threadfence();
      const std::uint32_t before =
          atomicAdd(quantised.tiles_done + tiles.block * quantised.num_groups + outputs, 1);
      __threadfence();
      shared_.is_last(group()) = before + 1 == num_tiles ? 1 : 0;
    }
    synchronize();
    return shared_.is_last(group()) != 0;
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
    const int own = thread() / kThreads;
    const std::int64_t pair = pair_of(shared_, tiles, min(own, tiles.num_pairs - 1));
    const auto first = static_cast<std::int32_t>(outputs * core::kScaleBlock) +
                       thread() % kThreads * Word::kElements;
    const Fp8GroupWord word(outputs_at(pair, first), args_.quantised.use_ue8m0);
    if (own >= tiles.num_pairs || first >= args_.gate_up.args.num_outputs) return;
    write_quantized(pair, first, word.bytes);
    if (thread() % kThreads == 0) {
      args_.quantised.scales[pair * args_.down.args.row_scale_stride + outputs] = word.scale;
    }
  }

  /// Quantises all outputs of all pairs: of up to as many pairs at once as there are warps, among
  /// which the threads of the group are divided.
  __device__ __forceinline__ void quantize_rows(const SwapAbTiles& tiles) const {
    constexpr int kWarps = Group::kThreads / 32;
    int at_once = 1;  // pairs
    while (at_once < min(tiles.num_pairs, kWarps)) at_once *= 2;
    const int threads = Group::kThreads / at_once;  // of a pair
    for (int done = 0; done < tiles.num_pairs; done += at_once) {
      const int own = done + thread() / threads;
      const std::int64_t pair = pair_of(shared_, tiles, min(own, tiles.num_pairs - 1));
      quantize_row(pair, own < tiles.num_pairs, thread() % threads, threads);
    }
  }

  /// Quantises all outputs of a pair by `threads` threads, of which this one has this number. All
  /// threads of the group call it, also those without a pair.
  __device__ __forceinline__ void quantize_row(std::int64_t pair, bool is_given, int number,
                                               int threads) const {
    const SwapAbQuantised& quantised = args_.quantised;
    const std::int32_t end = is_given ? args_.gate_up.args.num_outputs : 0;
    const auto for_each_word = [&](const auto& visit) {
#pragma unroll 2
      for (std::int32_t first = number * Word::kElements; first < end;
           first += threads * Word::kElements) {
        visit(first, outputs_at(pair, first));
      }
    };
    if (quantised.scale != nullptr) {
      const float scale = *quantised.scale;
      for_each_word([&](std::int32_t first, const Word& word) {
        write_quantized(pair, first,
                        word.quantized([&](float value) { return __fdiv_rn(value, scale); }));
      });
      return;
    }
    float largest = 0;
    for_each_word(
        [&](std::int32_t, const Word& word) { largest = fmaxf(largest, word.largest()); });
    const float scale = fp8_scale_for(largest_of_team(largest, threads), quantised.use_ue8m0);
    const Fp8Divisor divisor = fp8_divisor(scale);
    for_each_word([&](std::int32_t first, const Word& word) {
      write_quantized(pair, first,
                      word.quantized([&](float value) { return quotient(value, divisor); }));
    });
    if (is_given && number == 0) quantised.scales[pair] = scale;
  }

  /// The largest of the magnitudes that neighbouring threads have, as its bits. All threads of the
  /// group take part. The sums are not read any more.
  __device__ __forceinline__ std::uint32_t largest_of_team(float largest, int threads) const {
    float* const of_warps = shared_.sums(group());
    const int own_warp = thread() / 32;
    const std::uint32_t of_warp = __reduce_max_sync(kAllLanes, __float_as_uint(largest));
    if (lane() == 0) of_warps[own_warp] = __uint_as_float(of_warp);
    synchronize();
    std::uint32_t of_team = 0;
    const int team_warps = threads / 32;
    const int first = own_warp / team_warps * team_warps;
    for (int i = 0; i < team_warps; ++i) {
      of_team = max(of_team, __float_as_uint(of_warps[first + i]));
    }
    synchronize();  // the next call may write
    return of_team;
  }

  const SwapAbArgs& args_;
  SwapAbShared<kTiling> shared_;
};

}  // namespace tessera::cuda
