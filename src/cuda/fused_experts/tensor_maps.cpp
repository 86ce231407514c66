#include "cuda/fused_experts/tensor_maps.hpp"

#include "cuda/driver.hpp"
#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/fused_experts/wgmma.hpp"

namespace tessera::cuda {
namespace {

/// Gate and up, which are an axis of their own, or one kind of rows.
int kinds(const ProductArgs& args) { return args.is_gated ? 2 : 1; }

/// Elements between the rows of two outputs that follow each other.
std::int64_t output_stride(const ProductArgs& args) {
  return args.weight_row_stride * (args.is_interleaved ? 2 : 1);
}

/// Elements between the rows of gate and of up of an output.
std::int64_t kind_stride(const ProductArgs& args) {
  return args.weight_row_stride * (args.is_interleaved ? 1 : args.num_outputs);
}

}  // namespace

CUresult encode_weights(const ProductArgs& args, int element_bytes, std::int64_t num_experts,
                        CUtensorMap* map) {
  const TensorMapAxis axes[] = {{args.depth, 1, kLineBytes / element_bytes},
                                {args.num_outputs, output_stride(args), kWgmmaBoxRows},
                                {kinds(args), kind_stride(args), 1},
                                {num_experts, args.expert_stride, 1}};
  return encode_tensor_map(args.weights, element_bytes, axes, map);
}

CUresult encode_intermediate(const ProductArgs& args, int element_bytes, std::int64_t num_rows,
                             CUtensorMap* map) {
  const TensorMapAxis axes[] = {{args.depth, 1, kLineBytes / element_bytes},
                                {num_rows, args.row_stride, kWgmmaHalf}};
  return encode_tensor_map(args.rows, element_bytes, axes, map);
}

CUresult encode_runs(const ProductArgs& args, int tile_rows, int element_bytes,
                     std::int64_t num_experts, CUtensorMap* map) {
  const TensorMapAxis axes[] = {
      {args.depth, 1, kLineBytes / element_bytes},
      {kSwapAbRun, output_stride(args), kSwapAbRun},
      {kinds(args), kind_stride(args), kinds(args)},
      {(args.num_outputs - 1) / kSwapAbRun + 1, kSwapAbRun * output_stride(args),
       tile_rows / kSwapAbRun / kinds(args)},
      {num_experts, args.expert_stride, 1}};
  return encode_tensor_map(args.weights, element_bytes, axes, map);
}

}  // namespace tessera::cuda
