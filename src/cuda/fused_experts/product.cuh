// The kernel of both products. A CTA takes a block of pairs of one expert, as align_block_size
// forms them, and a few rows of the expert's weights; it gathers the rows of the pairs through
// shared memory and multiplies them by tensor cores, in a pipeline of stages. Every sum is computed
// in the order of its terms by one warp, so that a pair's results do not depend on other pairs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda/fused_experts/activations.cuh"
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/product_scales.cuh"
#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/stages.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {

/// Multiplies numbers of type Operand: T, the type of biases, or __nv_fp8_e4m3.
template <typename Operand, typename T, std::size_t kTileIndex, WeightAccess kAccess,
          bool kIsGateUp>
struct Product {
  static constexpr bool kIsFp8 = sizeof(Operand) == 1;
  using Args = std::conditional_t<kIsFp8, Fp8ProductArgs, ProductArgs>;
  using Element = std::conditional_t<kIsFp8, std::uint8_t, std::uint16_t>;
  /// The intermediate in float8_e4m3fn is not rounded before it is quantised.
  using Output = std::conditional_t<kIsFp8 && kIsGateUp, float, T>;
  /// Terms of a sum in a stage.
  static constexpr int kDepth = kLineDepth<Operand>;
  static constexpr ProductTile kTile = kProductTiles[kTileIndex];
  static constexpr int kWarpRows = kTile.pairs / kTile.warps_along_pairs;
  static constexpr int kWarpColumns = kTile.columns / kTile.warps_along_columns;
  static constexpr int kRowBytes = kTile.pairs * kLineBytes;
  static constexpr int kStageBytes = kRowBytes + kTile.columns * kLineBytes;
  static constexpr int kSumStride = kTile.columns + 8;
  static_assert(kTile.warps_along_pairs * kTile.warps_along_columns == kProductWarps);

  using WarpSums = Sums<kWarpRows, kWarpColumns>;

  struct PairsOfBlock {
    std::int32_t pair[kTile.pairs];  ///< -1: none, from there on
    float scale[kTile.pairs];        ///< the router's weight, or 1
  };
  static_assert(sizeof(PairsOfBlock) <= kProductStaticSharedBytes);

  /// The block of pairs and the first output of a CTA.
  struct Place {
    std::int32_t block;
    std::int32_t first_output;
  };

  static __device__ __forceinline__ Place place(const ProductArgs& args) {
    const TileAt at = tile_at<8>(blockIdx.x, args.num_blocks, args.num_columns);
    return {static_cast<std::int32_t>(at.block),
            static_cast<std::int32_t>(at.column) * outputs_per_tile(args)};
  }

  /// outputs_of, with what the down product knows at compile time.
  static __device__ __forceinline__ int outputs_per_tile(const ProductArgs& args) {
    return kIsGateUp ? outputs_of(args, kTile.columns) : kTile.columns;
  }

  /// The row of the weights behind a column of the tile, or -1. Gate and up take turns in eights,
  /// so that both are in the same tile.
  static __device__ __forceinline__ std::int64_t weight_row(const ProductArgs& args,
                                                            std::int32_t first_output, int column) {
    if (!kIsGateUp || !args.is_gated) {
      const std::int32_t output = first_output + column;
      return output < args.num_outputs ? output : -1;
    }
    const std::int32_t output = first_output + column / 16 * 8 + column % 8;
    if (output >= args.num_outputs) return -1;
    return gated_row(args, output, column / 8 % 2 != 0);
  }

  /// The same for the first column of a word of weights by columns. Interleaved rows of gate and up
  /// stay so in the tile.
  static __device__ __forceinline__ std::int64_t weight_row_of_word(const ProductArgs& args,
                                                                    std::int32_t first_output,
                                                                    int word) {
    if (!kIsGateUp || !args.is_interleaved) {
      return weight_row(args, first_output, word * kWordElements);
    }
    const std::int64_t row = 2 * std::int64_t{first_output} + word * kWordElements;
    return row < 2 * std::int64_t{args.num_outputs} ? row : -1;
  }

  static __device__ __forceinline__ auto rows_of(const ProductArgs& args,
                                                 const PairsOfBlock& pairs) {
    return LinesAlongSum<Element, kTile.pairs, kAccess != WeightAccess::kElements>(
        1, [&](int line) -> const Element* {
          if (pairs.pair[line] < 0) return nullptr;
          return static_cast<const Element*>(args.rows) +
                 std::int64_t{divide(pairs.pair[line], args.slots_per_row)} * args.row_stride;
        });
  }

  static __device__ __forceinline__ auto weights_of(const ProductArgs& args, std::int32_t expert,
                                                    std::int32_t first_output) {
    const auto* const weights =
        static_cast<const Element*>(args.weights) + expert * args.expert_stride;
    if constexpr (kAccess == WeightAccess::kColumns) {
      return LinesAcrossSum<kTile.columns>(
          args.weight_column_stride, [&](int word) -> const Element* {
            const std::int64_t row = weight_row_of_word(args, first_output, word);
            return row < 0 ? nullptr : weights + row;
          });
    } else {
      return LinesAlongSum<Element, kTile.columns, kAccess == WeightAccess::kRows>(
          args.weight_column_stride, [&](int column) -> const Element* {
            const std::int64_t row = weight_row(args, first_output, column);
            return row < 0 ? nullptr : weights + row * args.weight_row_stride;
          });
    }
  }

  static __device__ __forceinline__ int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / kTile.warps_along_columns * kWarpRows;
  }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % kTile.warps_along_columns * kWarpColumns;
  }

  /// The number of the warp's rows that hold pairs, rounded up to sixteens: they come first.
  static __device__ __forceinline__ int num_warp_rows(const PairsOfBlock& pairs) {
    int count = 0;
    for (int row = 0; row < kWarpRows; row += 16) {
      if (pairs.pair[warp_row() + row] >= 0) count = row + 16;
    }
    return count;
  }

  /// What a warp multiplies of two words of a stage, of kRows rows and of all its columns.
  template <int kRows>
  struct Fragments {
    std::uint32_t a[kRows / 16][4];
    std::uint32_t b[kWarpColumns / 16][4];

    __device__ __forceinline__ void load(std::uint32_t stage, int word) {
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) load_a(stage, warp_row() + 16 * i, word, a[i]);
#pragma unroll
      for (int j = 0; j < kWarpColumns / 16; ++j) {
        const int column = warp_column() + 16 * j;
        if constexpr (kAccess == WeightAccess::kColumns) {
          load_b_transposed<kTile.columns>(stage + kRowBytes, column, word, b[j]);
        } else {
          load_b(stage + kRowBytes, column, word, b[j]);
        }
      }
    }

    __device__ __forceinline__ void multiply(WarpSums* sums) const {
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kWarpColumns / 16; ++j) {
          multiply_add<Operand>(a[i], b[j][0], b[j][1], sums->of[i][2 * j]);
          multiply_add<Operand>(a[i], b[j][2], b[j][3], sums->of[i][2 * j + 1]);
        }
      }
    }
  };

  /// Adds the products of one stage for the first `num_rows` rows of the warp: there is code for
  /// each number of sixteens. The next fragments are on their way while the tensor cores multiply.
  template <int kRows = kWarpRows>
  static __device__ __forceinline__ void add_stage(std::uint32_t stage, int num_rows,
                                                   WarpSums* sums) {
    if constexpr (kRows > 16) {
      if (num_rows <= kRows - 16) return add_stage<kRows - 16>(stage, num_rows, sums);
    }
    if (num_rows == 0) return;
    Fragments<kRows> fragments[2];
    fragments[0].load(stage, 0);
#pragma unroll
    for (int word = 0; word < kWordsPerStage; word += 2) {
      if (word + 2 < kWordsPerStage) fragments[word / 2 % 2 ^ 1].load(stage, word + 2);
      fragments[word / 2 % 2].multiply(sums);
    }
  }

  /// Multiplies all stages; num_stages - 1 of them are on the way at any time. Calls
  /// after_stage(step) when the products of a stage have been added.
  template <typename RowLines, typename WeightLines, typename AfterStage>
  static __device__ __forceinline__ void multiply(int num_rows, const RowLines& rows,
                                                  const WeightLines& weights, std::int32_t depth,
                                                  std::uint32_t shared, WarpSums* sums,
                                                  const AfterStage& after_stage) {
    const std::int32_t num_steps = (depth - 1) / kDepth + 1;
    const auto start_copies = [&](std::int32_t step) {
      if (step < num_steps) {
        const std::uint32_t stage = shared + step % kTile.num_stages * kStageBytes;
        rows.copy(stage, step * kDepth, depth);
        weights.copy(stage + kRowBytes, step * kDepth, depth);
      }
      commit_copies();
    };
    for (std::int32_t step = 0; step < kTile.num_stages - 1; ++step) start_copies(step);
    for (std::int32_t step = 0; step < num_steps; ++step) {
      wait_for_copies<kTile.num_stages - 2>();
      // The stage has arrived for all threads, and all have read the one that is copied to next.
      __syncthreads();
      start_copies(step + kTile.num_stages - 1);
      add_stage(shared + step % kTile.num_stages * kStageBytes, num_rows, sums);
      after_stage(step);
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  /// Sums of products of numbers in float8_e4m3fn and their scales.
  template <typename RowLines, typename WeightLines>
  static __device__ __forceinline__ void multiply_scaled(
      const Args& args, const PairsOfBlock& pairs, std::int32_t expert, std::int32_t first_output,
      const RowLines& rows, const WeightLines& weights, std::uint32_t shared, WarpSums* sums) {
    const auto row_of = [&](int column) { return weight_row(args, first_output, column); };
    const ProductScales<kWarpRows, kWarpColumns> scales(args, expert, pairs.pair + warp_row(),
                                                        pairs.pair[0], row_of);
    const bool is_per_block = args.weight_scales.kind == core::WeightScales::kPerBlock;
    WarpSums of_stages;
    multiply(num_warp_rows(pairs), rows, weights, args.depth, shared, &of_stages,
             [&](std::int32_t step) {
               if (is_per_block) scales.add_block(step, &of_stages, sums);
             });
    if (is_per_block) return;
    *sums = of_stages;
    scales.multiply(warp_column(), row_of, sums);
  }

  /// Writes a warp's sums to the tile [pairs][kSumStride] in shared memory.
  static __device__ __forceinline__ void share_sums(const WarpSums& sums, float* tile) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kWarpRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; ++j) {
        float* const at = tile + (warp_row() + 16 * i + lane / 4) * kSumStride + warp_column() +
                          8 * j + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sums.of[i][j][0], sums.of[i][j][1]);
        *reinterpret_cast<float2*>(at + 8 * kSumStride) =
            make_float2(sums.of[i][j][2], sums.of[i][j][3]);
      }
    }
    __syncthreads();
  }

  /// Elements that a thread writes at once.
  static constexpr int kAtOnce = kWordElements;

  /// Writes compute(row of the tile, place among the tile's outputs, output), rounded, for the
  /// outputs of all pairs.
  template <typename Compute>
  static __device__ __forceinline__ void write_outputs(const ProductArgs& args,
                                                       const PairsOfBlock& pairs,
                                                       std::int32_t first_output,
                                                       const Compute& compute) {
    const int per_row = outputs_per_tile(args) / kAtOnce;
    for (int item = static_cast<int>(threadIdx.x); item < kTile.pairs * per_row;
         item += kProductThreads) {
      const int row = item / per_row;
      const int place = item % per_row * kAtOnce;
      const std::int32_t pair = pairs.pair[row];
      if (pair < 0 || first_output + place >= args.num_outputs) continue;
      struct alignas(kAtOnce * sizeof(Output)) Word {
        Output elements[kAtOnce];
      } word;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // Nothing reads the elements after the last of a row, which has room for whole words.
        const std::int32_t output = min(first_output + place + i, args.num_outputs - 1);
        word.elements[i] = rounded<Output>(compute(row, place + i, output));
      }
      Output* const to =
          static_cast<Output*>(args.output) + pair * args.output_stride + first_output + place;
      *reinterpret_cast<Word*>(to) = word;
    }
  }

  /// Writes the activated intermediate.
  static __device__ __forceinline__ void write_activated(const ProductArgs& args,
                                                         const PairsOfBlock& pairs,
                                                         std::int32_t expert,
                                                         std::int32_t first_output,
                                                         const float* tile) {
    const bool is_in_turns = kAccess == WeightAccess::kColumns && args.is_interleaved;
    with_activation(args.activation, [&]<Activation kActivation>() {
      write_outputs(args, pairs, first_output, [&](int row, int place, std::int64_t output) {
        const float* const sums = tile + row * kSumStride;
        const float scale = pairs.scale[row];
        if constexpr (!has_gate(kActivation)) {
          const float gate = __fmaf_rn(scale, sums[place], bias_of<T>(args, expert, output));
          return activated<kActivation>(args, gate, 0);
        }
        const int gate_column = is_in_turns ? 2 * place : place / 8 * 16 + place % 8;
        const int up_column = gate_column + (is_in_turns ? 1 : 8);
        const float gate = __fmaf_rn(scale, sums[gate_column],
                                     bias_of<T>(args, expert, gated_row(args, output, false)));
        const float up = __fmaf_rn(scale, sums[up_column],
                                   bias_of<T>(args, expert, gated_row(args, output, true)));
        return activated<kActivation>(args, gate, up);
      });
    });
  }

  /// Writes the weighted rows of the down product.
  static __device__ __forceinline__ void write_rows(const ProductArgs& args,
                                                    const PairsOfBlock& pairs, std::int32_t expert,
                                                    std::int32_t first_output, const float* tile) {
    write_outputs(args, pairs, first_output, [&](int row, int place, std::int32_t output) {
      return pairs.scale[row] * (tile[row * kSumStride + place] + bias_of<T>(args, expert, output));
    });
  }

  static __device__ __forceinline__ void run(const Args& args, unsigned char* shared,
                                             PairsOfBlock* pairs) {
    pdl_launch_dependents();
    pdl_wait();
    const Place at = place(args);
    if (at.block * kTile.pairs >= *args.num_slots) return;
    const std::int32_t expert = args.block_experts[at.block];
    for (int i = static_cast<int>(threadIdx.x); i < kTile.pairs; i += kProductThreads) {
      const std::int32_t pair = args.sorted_pairs[at.block * kTile.pairs + i];
      pairs->pair[i] = pair < args.num_pairs ? pair : -1;
      pairs->scale[i] = pair < args.num_pairs ? router_weight(args, pair) : 0;
    }
    __syncthreads();
    WarpSums sums;
    const auto rows = rows_of(args, *pairs);
    const auto weights = weights_of(args, expert, at.first_output);
    if constexpr (kIsFp8) {
      multiply_scaled(args, *pairs, expert, at.first_output, rows, weights, shared_address(shared),
                      &sums);
    } else {
      multiply(num_warp_rows(*pairs), rows, weights, args.depth, shared_address(shared), &sums,
               [](std::int32_t) {});
    }
    float* const tile = reinterpret_cast<float*>(shared);
    share_sums(sums, tile);
    if constexpr (kIsGateUp) {
      write_activated(args, *pairs, expert, at.first_output, tile);
    } else {
      write_rows(args, *pairs, expert, at.first_output, tile);
    }
  }
};

template <typename Kernel>
__global__ void __launch_bounds__(kProductThreads)
    product_kernel(const __grid_constant__ typename Kernel::Args args) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ typename Kernel::PairsOfBlock pairs;
  Kernel::run(args, shared, &pairs);
}

/// The kernel of a tile: the only one of kElements, or one of the first kNumTiles.
template <typename Operand, typename T, WeightAccess kAccess, bool kIsGateUp, std::size_t kNumTiles>
const void* product_kernel_of(std::size_t tile) {
  if constexpr (kAccess == WeightAccess::kElements) {
    using Kernel = Product<Operand, T, kElementsTile, kAccess, kIsGateUp>;
    return reinterpret_cast<const void*>(&product_kernel<Kernel>);
  } else {
    return [&]<std::size_t... kTiles>(std::index_sequence<kTiles...>)->const void* {
      const void* found = nullptr;
      ((tile == kTiles ? found = reinterpret_cast<const void*>(
                             &product_kernel<Product<Operand, T, kTiles, kAccess, kIsGateUp>>)
                       : nullptr),
       ...);
      return found;
    }
    (std::make_index_sequence<kNumTiles>());
  }
}

/// The kernel of a product of numbers of the type of x.
template <bool kIsGateUp, typename T>
const void* product_kernel_of(WeightAccess access, std::size_t tile) {
  constexpr std::size_t kTiles = kProductTiles.size();
  switch (access) {
    case WeightAccess::kRows:
      return product_kernel_of<T, T, WeightAccess::kRows, kIsGateUp, kTiles>(tile);
    case WeightAccess::kColumns:
      return product_kernel_of<T, T, WeightAccess::kColumns, kIsGateUp, kTiles>(tile);
    default:
      return product_kernel_of<T, T, WeightAccess::kElements, kIsGateUp, kTiles>(tile);
  }
}

}  // namespace tessera::cuda
