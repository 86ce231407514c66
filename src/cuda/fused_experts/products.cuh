// What all kernels of the two products have in common.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/division.cuh"
#include "cuda/parts/floats.cuh"

namespace tessera::cuda {

/// The numbers that a product multiplies; T: the type of x.
template <Scaling kScaling, typename T>
using OperandOf = std::conditional_t<kScaling == Scaling::kNone, T, __nv_fp8_e4m3>;

/// What they are copied as.
template <Scaling kScaling>
using ElementOf = std::conditional_t<kScaling == Scaling::kNone, std::uint16_t, std::uint8_t>;

/// Terms of a sum in a line.
template <Scaling kScaling>
inline constexpr int kDepthOf = kLineDepth<ElementOf<kScaling>>;

/// Two numbers, of the two rows that a lane has of the sums of wgmma.
struct OfRows {
  float of[2];
};

/// A tile among those of `num_blocks` blocks of pairs and `num_columns` columns of outputs.
struct TileAt {
  std::uint32_t block;
  std::uint32_t column;
};

/// Neighbouring tiles share weights, and up to kBlocksAtOnce blocks share them from the cache.
template <std::uint32_t kBlocksAtOnce>
__device__ __forceinline__ TileAt tile_at(std::uint32_t tile, std::uint32_t num_blocks,
                                          std::uint32_t num_columns) {
  const std::uint32_t group = tile / (kBlocksAtOnce * num_columns);
  const std::uint32_t in_group = tile % (kBlocksAtOnce * num_columns);
  const std::uint32_t first = group * kBlocksAtOnce;
  const std::uint32_t blocks = min(num_blocks - first, kBlocksAtOnce);
  return {first + in_group % blocks, in_group / blocks};
}

/// The outputs of a tile of so many columns, or rows of the weights.
__device__ __forceinline__ std::int32_t outputs_of(const ProductArgs& args, std::int32_t columns) {
  return args.is_gated ? columns / 2 : columns;
}

/// The row of the weights of gate, or of up, that belongs to an output.
__device__ __forceinline__ std::int64_t gated_row(const ProductArgs& args, std::int64_t output,
                                                  bool is_up) {
  if (args.is_interleaved) return 2 * output + (is_up ? 1 : 0);
  return output + (is_up ? args.num_outputs : 0);
}

/// The bias of a row of the weights, or 0.
template <typename T>
__device__ __forceinline__ float bias_of(const ProductArgs& args, std::int32_t expert,
                                         std::int64_t row) {
  if (args.bias == nullptr) return 0;
  return to_float(static_cast<const T*>(args.bias)[expert * args.bias_stride + row]);
}

/// The router's weight of a pair, or 1 if weights do not scale this product.
__device__ __forceinline__ float router_weight(const ProductArgs& args, std::int32_t pair) {
  if (args.topk_weights == nullptr) return 1;
  const auto token = static_cast<std::int32_t>(divide(pair, args.slots_per_token));
  const std::int32_t slot = pair - token * args.top_k;
  return float_at(args.topk_weights, args.topk_weights_dtype,
                  token * args.topk_weights_stride + slot);
}

}  // namespace tessera::cuda
