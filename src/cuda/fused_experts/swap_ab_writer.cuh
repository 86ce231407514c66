// How the warpgroups of the kernel that exchanges operands write the sums of a tile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/activations.cuh"
#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/swap_ab_tiles.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/fp8.cuh"

namespace tessera::cuda {

/// Writes the sums of a tile, which its group puts into shared memory: of the gate-up product
/// activated, of the down product times the router's weights.
template <Scaling kScaling, typename T, std::size_t kTiling>
class SwapAbWriter {
 public:
  __device__ __forceinline__ SwapAbWriter(const SwapAbArgs& args, SwapAbShared<kTiling> shared,
                                          const SwapAbTiles& tiles, std::int32_t first_output)
      : product_(product_of(args, tiles.step)),
        shared_(shared),
        tiles_(tiles),
        first_output_(first_output) {}

  /// Begins a tile, a pair by each thread: reads the router's weights if it is the group's first
  /// tile of those taken at once. The group synchronises before it writes.
  __device__ __forceinline__ void begin(bool is_first) const {
    if (Group::thread() >= tiles_.num_pairs) return;
    if (is_first) {
      weight_of(Group::thread()) =
          router_weight(product_.args, pair_of(shared_, tiles_, Group::thread()));
    }
    if constexpr (kScaling == Scaling::kRows) *largest_of(Group::thread()) = 0;
  }

  /// Puts the sums from this one on into shared memory, as many as are written at once.
  template <int kFirst, int kSums>
  __device__ __forceinline__ void share(const float (&sums)[kSums]) const {
    const int row = kSwapAbOperandRows * Group::operand() + 16 * Group::warp() + Group::lane() / 4;
#pragma unroll
    for (int i = 0; i < std::min(kSums - kFirst, Layout::kPairsAtOnce / 2); ++i) {
      sums_of(Group::pair_of_sum(i))[row + i % 4 / 2 * 8] = sums[kFirst + i];
    }
  }

  /// The same of this part.
  template <int kPart = 0, int kSums>
  __device__ __forceinline__ void share_part(const float (&sums)[kSums], int part) const {
    constexpr int kFirst = kPart * (Layout::kPairsAtOnce / 2);
    if (part == kPart) return share<kFirst>(sums);
    if constexpr (kFirst + Layout::kPairsAtOnce / 2 < kSums) share_part<kPart + 1>(sums, part);
  }

  /// Writes what is shared: of the pairs of the block from `first_pair` on.
  __device__ __forceinline__ void write(int first_pair) const {
    if (tiles_.step == SwapAbStep::kGateUp) {
      write_activated(first_pair);
    } else {
      write_rows(first_pair);
    }
  }

  /// With scales of rows, once the group has written the tile: adds it to the largest magnitudes of
  /// rows, by the first warp.
  __device__ __forceinline__ void note_largest(std::uint32_t* largest) const {
    static_assert(Layout::kPairs <= 32 && Layout::kPairsAtOnce == Layout::kPairs);
    if (Group::thread() < tiles_.num_pairs) {
      atomicMax(largest + pair_of(shared_, tiles_, Group::thread()), *largest_of(Group::thread()));
    }
    __syncwarp();  // before the first thread counts the tile
  }

 private:
  using Group = SwapAbGroup<kTiling>;
  using Layout = SwapAbLayout<kTiling>;
  /// The intermediate is not rounded before it is quantised.
  using Intermediate = std::conditional_t<kScaling == Scaling::kNone, T, float>;

  __device__ __forceinline__ float& weight_of(int pair) const {
    return shared_.weights_of_pairs(Group::number())[pair];
  }

  __device__ __forceinline__ float* sums_of(int pair) const {
    return shared_.sums(Group::number()) + pair * Layout::kSumStride;
  }

  /// The largest magnitude of the outputs of a pair, as bits, in the padding after its sums.
  __device__ __forceinline__ std::uint32_t* largest_of(int pair) const {
    return reinterpret_cast<std::uint32_t*>(sums_of(pair) + Layout::kSumStride - 1);
  }

  /// Writes compute(pair of the block, its sums, place among the tile's outputs, output), rounded,
  /// for the outputs of the pairs whose sums are shared, from `first_pair` on.
  template <typename Output, typename Compute>
  __device__ __forceinline__ void write(int first_pair, const Compute& compute) const {
    const ProductArgs& args = product_.args;
    const int per_pair = outputs_of(product_) / kWordElements;
    const int num_pairs = min(tiles_.num_pairs - first_pair, Layout::kPairsAtOnce);
    for (int item = Group::thread(); item < num_pairs * per_pair; item += Group::kThreads) {
      const int pair = first_pair + item / per_pair;
      const float* const sums = sums_of(item / per_pair);
      const int first = item % per_pair * kWordElements;
      if (first_output_ + first >= args.num_outputs) continue;
      struct alignas(kWordElements * sizeof(Output)) Word {
        Output elements[kWordElements];
      } word;
#pragma unroll
      for (int i = 0; i < kWordElements; ++i) {
        word.elements[i] =
            rounded<Output>(compute(pair, sums, first + i, first_output_ + first + i));
      }
      const std::int64_t row = pair_of(shared_, tiles_, pair);
      Output* const to =
          static_cast<Output*>(args.output) + row * args.output_stride + first_output_ + first;
      *reinterpret_cast<Word*>(to) = word;
      if constexpr (kScaling == Scaling::kRows && std::is_same_v<Output, Intermediate>) {
        std::uint32_t largest = 0;
        for (const float element : word.elements) largest = max(largest, finite_magnitude(element));
        atomicMax(largest_of(item / per_pair), largest);
      }
    }
  }

  __device__ __forceinline__ void write_activated(int first_pair) const {
    const ProductArgs& args = product_.args;
    with_activation(args.activation, [&]<Activation kActivation>() {
      const auto compute = [&](int pair, const float* sums, int at, std::int32_t output) {
        const float scale = weight_of(pair);
        if constexpr (!has_gate(kActivation)) {
          const float gate = __fmaf_rn(scale, sums[at], bias_of<T>(args, tiles_.expert, output));
          return activated<kActivation>(args, gate, 0);
        }
        const int gate_row = at / kSwapAbRun * 2 * kSwapAbRun + at % kSwapAbRun;
        const float gate = __fmaf_rn(
            scale, sums[gate_row], bias_of<T>(args, tiles_.expert, gated_row(args, output, false)));
        const float up = __fmaf_rn(scale, sums[gate_row + kSwapAbRun],
                                   bias_of<T>(args, tiles_.expert, gated_row(args, output, true)));
        return activated<kActivation>(args, gate, up);
      };
      write<Intermediate>(first_pair, compute);
    });
  }

  __device__ __forceinline__ void write_rows(int first_pair) const {
    const ProductArgs& args = product_.args;
    const auto compute = [&](int pair, const float* sums, int at, std::int32_t output) {
      return weight_of(pair) * (sums[at] + bias_of<T>(args, tiles_.expert, output));
    };
    write<T>(first_pair, compute);
  }

  const SwapAbProduct& product_;
  SwapAbShared<kTiling> shared_;
  const SwapAbTiles& tiles_;
  std::int32_t first_output_;
};

}  // namespace tessera::cuda
