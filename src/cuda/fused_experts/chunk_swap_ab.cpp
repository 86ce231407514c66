// The steps of a chunk whose operands are exchanged.
#include <algorithm>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/fused_experts/chunk.hpp"
#include "cuda/fused_experts/tensor_maps.hpp"

namespace tessera::cuda {

/// By one kernel, once its counters are clear.
Status Chunk::swap_ab() const {
  const std::size_t tiling = swap_ab_tiling(problem_);
  const SwapAbTiling& tiles = kSwapAbTilings[tiling];
  SwapAbArgs args{};
  CUresult error = describe(ProductKind::kGateUp, tiles.gate_up_rows, &args.gate_up);
  if (error == CUDA_SUCCESS) error = describe(ProductKind::kDown, tiles.down_rows, &args.down);
  if (error != CUDA_SUCCESS) return refuse_tensor_map("the products", error);
  args.combine = combination();
  args.num_combine_parts =
      static_cast<std::uint32_t>(problem_.num_tokens) * args.combine.ctas_per_token;
  SwapAbCounters counters{at<std::uint32_t>(workspace_.block_experts),
                          static_cast<std::uint32_t>(workspace_.block_experts_length)};
  args.taken = counters.counters;
  args.down_done = counters.counters + 1;
  args.gate_up_done = counters.counters + 2;
  args.gate_up_parts = args.gate_up.args.num_columns;
  if (problem_.has_fp8_weights()) {
    SwapAbQuantised& quantised = args.quantised;
    quantised.values = at<std::uint8_t>(workspace_.fp8_intermediate);
    quantised.scales = at<float>(workspace_.fp8_intermediate_scales);
    quantised.scale = problem_.intermediate_scale;
    quantised.use_ue8m0 = problem_.use_ue8m0;
    quantised.tiles_done = args.gate_up_done + workspace_.max_blocks;
    if (scaling_of(problem_) == Scaling::kBlocks) {
      quantised.num_groups =
          static_cast<std::uint32_t>(scales_per_row(problem_, problem_.intermediate_size));
      quantised.tiles_per_group = static_cast<std::uint32_t>(
          core::kScaleBlock / outputs_of_tile(args.gate_up.args, tiles.gate_up_rows));
      args.gate_up_parts = quantised.num_groups;
    } else {
      quantised.parts_per_block = static_cast<std::uint32_t>(
          (problem_.intermediate_size - 1) / kSwapAbQuantisedOutputs + 1);
      quantised.parts_taken = quantised.tiles_done + workspace_.max_blocks;
      if (quantised.scale == nullptr) quantised.largest = quantised.parts_taken + 1;
      args.gate_up_parts = quantised.parts_per_block;
    }
  }
  args.prefetches_weights = quantises_x_while_clearing() && prefetches_weights(problem_);
  if (Status s = start_swap_ab(counters); !s.ok()) return s;
  return launch(prepared_swap_ab_kernel(is_bfloat16(), scaling_of(problem_), tiling),
                properties_in(context_).available_sms, kSwapAbThreads, swap_ab_shared_bytes(tiling),
                &args, "the layer");
}

bool Chunk::quantises_x_while_clearing() const {
  const bool has_words = reinterpret_cast<std::uintptr_t>(problem_.x) % kWordBytes == 0 &&
                         problem_.x_stride % kWordElements == 0;
  return scaling_of(problem_) == Scaling::kBlocks && !problem_.is_x_fp8 && has_words;
}

/// Clears the counters, and quantises x if it is not in float8_e4m3fn.
Status Chunk::start_swap_ab(SwapAbCounters counters) const {
  if (!quantises_x_while_clearing()) {
    if (problem_.has_fp8_weights() && !problem_.is_x_fp8) {
      if (Status s = quantize_x(); !s.ok()) return s;
    }
    return launch(prepared_swap_ab_clear_kernel(), 1, kSwapAbClearThreads, 0, &counters,
                  "the counters of tiles");
  }
  SwapAbFp8Start start{};
  start.counters = counters;
  start.x = problem_.x;
  start.values = at<std::uint8_t>(workspace_.fp8_x);
  start.scales = at<float>(workspace_.fp8_x_scales);
  start.use_ue8m0 = problem_.use_ue8m0;
  start.num_rows = static_cast<std::int32_t>(problem_.num_tokens);
  start.hidden_size = static_cast<std::int32_t>(problem_.hidden_size);
  start.num_groups = static_cast<std::int32_t>(core::num_scale_blocks(problem_.hidden_size));
  start.x_stride = problem_.x_stride;
  start.values_stride = padded_fp8_row(problem_.hidden_size);
  const std::int64_t ctas = (num_quantizing_threads(start) - 1) / kSwapAbClearThreads + 1;
  return launch(prepared_swap_ab_fp8_start_kernel(is_bfloat16()), 1 + ctas, kSwapAbClearThreads, 0,
                &start, "the quantisation of x");
}

CUresult Chunk::describe(ProductKind kind, int tile_rows, SwapAbProduct* product) const {
  Fp8ProductArgs& args = product->args;
  const bool is_fp8 = problem_.has_fp8_weights();
  if (is_fp8) {
    args = fp8_args_of(kind, tile_rows);
  } else {
    static_cast<ProductArgs&>(args) = args_of(kind, tile_rows);
  }
  product->tile_rows = tile_rows;
  const int element_bytes = is_fp8 ? 1 : 2;
  const std::int64_t row_bytes = std::int64_t{element_bytes} * args.depth;
  const std::int64_t tile_bytes = tile_rows * row_bytes;
  const std::int64_t blocks = std::min<std::int64_t>(num_pairs_, problem_.num_experts);
  const std::int64_t share = blocks * args.num_columns / properties_in(context_).available_sms;
  const std::int64_t run =
      std::min({(kSwapAbTakeBytes - 1) / tile_bytes + 1, std::max<std::int64_t>(share, 1),
                static_cast<std::int64_t>(args.num_columns)});
  product->run = static_cast<std::int32_t>(run);
  product->takes_per_block = static_cast<std::uint32_t>((args.num_columns - 1) / run + 1);
  product->max_blocks_evicted_first = max_blocks_evicted_first(problem_, row_bytes, tile_bytes);
  return encode_runs(args, tile_rows, element_bytes, problem_.num_experts, &product->weights);
}

}  // namespace tessera::cuda
