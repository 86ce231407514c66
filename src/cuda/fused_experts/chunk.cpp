#include "cuda/fused_experts/chunk.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/errors.hpp"
#include "core/quantize_fp8_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/fused_experts/tensor_maps.hpp"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/quantize_fp8/launch.hpp"

namespace tessera::cuda {
namespace {

using core::AlignBlockSizeProblem;
using core::FusedExpertsProblem;

constexpr std::string_view kOp = "fused_experts";
constexpr DLDataType kByte{kDLUInt, 8, 1};

/// An element of an array whose elements have this type.
template <typename Pointer>
Pointer element(Pointer array, DLDataType dtype, std::int64_t index) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte,
                                  std::byte>;
  return static_cast<Byte*>(array) + index * (dtype.bits / 8);
}

const char* name_of(ProductKind kind) {
  return kind == ProductKind::kGateUp ? "the gate-up product" : "the down product";
}

}  // namespace

Chunk::Chunk(const FusedExpertsProblem& call, std::int64_t first_token, std::int64_t num_tokens,
             ProductStrategy strategy, const Context& context)
    : problem_(call),
      strategy_(strategy),
      workspace_(call, num_tokens, strategy),
      accesses_(accesses_of(call)),
      context_(context),
      num_pairs_(static_cast<std::int32_t>(num_tokens * call.top_k)) {
  problem_.num_tokens = num_tokens;
  problem_.x = element(call.x, call.is_x_fp8 ? kByte : call.dtype, first_token * call.x_stride);
  if (call.is_x_fp8) problem_.x_scale = call.x_scale + first_token * call.x_scale_stride;
  problem_.topk_ids =
      element(call.topk_ids, call.topk_ids_dtype, first_token * call.topk_ids_stride);
  problem_.topk_weights =
      element(call.topk_weights, call.topk_weights_dtype, first_token * call.topk_weights_stride);
  problem_.output = element(call.output, call.dtype, first_token * call.output_stride);
  constexpr std::size_t kAlign = FusedExpertsWorkspace::kWorkspaceAlign;
  memory_ = context.workspace.data();
  memory_ += (kAlign - reinterpret_cast<std::uintptr_t>(memory_) % kAlign) % kAlign;
}

Status Chunk::refuse_tensor_map(const char* step, CUresult error) {
  return core::refuse(StatusCode::kRuntimeError, kOp, "tensor map",
                      std::string("arrays of ") + step + " that it can describe", text_of(error));
}

Status Chunk::run() const {
  if (!has_plain_ids(problem_, strategy_)) {
    if (Status s = find_experts(); !s.ok()) return s;
  }
  if (strategy_ == kSwapAb) return swap_ab();
  if (Status s = align(); !s.ok()) return s;
  if (problem_.has_fp8_weights()) return multiply_fp8();
  for (const ProductKind kind : {ProductKind::kGateUp, ProductKind::kDown}) {
    if (Status s = multiply(kind); !s.ok()) return s;
  }
  return combine();
}

AlignBlockSizeProblem Chunk::alignment() const {
  AlignBlockSizeProblem aligned{};
  aligned.topk_ids = pair_experts();
  aligned.id_dtype = pair_experts_dtype();
  aligned.num_ids = num_pairs_;
  aligned.block_size = pairs_per_block(strategy_);
  aligned.num_experts = static_cast<std::int32_t>(problem_.num_experts);
  aligned.tail_expert = -1;
  aligned.sorted_token_ids = at<std::int32_t>(workspace_.sorted_pairs);
  aligned.sorted_token_ids_length = workspace_.max_slots;
  aligned.expert_ids = at<std::int32_t>(workspace_.block_experts);
  aligned.expert_ids_length = workspace_.block_experts_length;
  aligned.num_tokens_post_pad = at<std::int32_t>(workspace_.num_slots);
  return aligned;
}

std::size_t Chunk::workspace_bytes() const {
  return workspace_.bytes(align_block_size_workspace_bytes(alignment(), context_));
}

const void* Chunk::pair_experts() const {
  return has_plain_ids(problem_, strategy_) ? problem_.topk_ids : at<void>(workspace_.pair_experts);
}
DLDataType Chunk::pair_experts_dtype() const {
  return has_plain_ids(problem_, strategy_) ? problem_.topk_ids_dtype : DLDataType{kDLInt, 32, 1};
}

Status Chunk::launch(const Kernel& kernel, std::int64_t num_ctas, int num_threads,
                     std::size_t shared_bytes, void* args, const char* step) const {
  const Launch launch{kernel, static_cast<int>(num_ctas), num_threads, shared_bytes};
  return launch_kernel(kOp, launch, args, context_, [&] {
    return std::string(step) + " to start with " + std::to_string(num_ctas) + " CTAs for " +
           std::to_string(problem_.num_tokens) + " tokens";
  });
}

Status Chunk::find_experts() const {
  PairsArgs args{};
  args.topk_ids = problem_.topk_ids;
  args.expert_map = problem_.expert_map;
  args.experts = at<std::int32_t>(workspace_.pair_experts);
  args.ids_are_64_bit = problem_.topk_ids_dtype.bits == 64;
  args.top_k = static_cast<std::int32_t>(problem_.top_k);
  args.slots_per_token = division_by(args.top_k);
  args.num_pairs = num_pairs_;
  args.topk_ids_stride = problem_.topk_ids_stride;
  args.num_global_experts = problem_.num_global_experts;
  args.num_experts = problem_.num_experts;
  return launch(prepared_pairs_kernel(), (num_pairs_ + kPairsThreads - 1) / kPairsThreads,
                kPairsThreads, 0, &args, "the experts of pairs");
}

Status Chunk::align() const {
  Context inner = context_;
  inner.workspace = inner.workspace.subspan(
      static_cast<std::size_t>(memory_ - inner.workspace.data()) + workspace_.alignment);
  return run_align_block_size(alignment(), inner);
}

ProductArgs Chunk::product(const core::ExpertWeights& weights) const {
  ProductArgs args{};
  args.weights = weights.data;
  args.bias = weights.bias;
  args.sorted_pairs = at<std::int32_t>(workspace_.sorted_pairs);
  args.block_experts = at<std::int32_t>(workspace_.block_experts);
  args.num_slots = at<std::int32_t>(workspace_.num_slots);
  args.num_pairs = num_pairs_;
  args.num_blocks = static_cast<std::uint32_t>(workspace_.max_blocks);
  args.expert_stride = weights.expert_stride;
  args.weight_row_stride = weights.row_stride;
  args.weight_column_stride = weights.column_stride;
  args.bias_stride = weights.bias_stride;
  args.topk_weights_stride = problem_.topk_weights_stride;
  args.topk_weights_dtype = problem_.topk_weights_dtype;
  args.top_k = static_cast<std::int32_t>(problem_.top_k);
  args.slots_per_token = division_by(args.top_k);
  return args;
}

ProductArgs Chunk::gate_up() const {
  ProductArgs args = product(problem_.w13);
  args.rows = problem_.x;
  args.slots_per_row = args.slots_per_token;
  args.row_stride = problem_.x_stride;
  args.output = at<void>(workspace_.intermediate);
  args.output_stride = padded_row(problem_.intermediate_size);
  args.depth = static_cast<std::int32_t>(problem_.hidden_size);
  args.num_outputs = static_cast<std::int32_t>(problem_.intermediate_size);
  args.is_gated = has_gate(problem_.activation);
  args.is_interleaved = problem_.activation == Activation::kSwigluoai;
  args.activation = problem_.activation;
  args.swiglu_alpha = problem_.swiglu_alpha;
  args.swiglu_beta = problem_.swiglu_beta;
  args.swiglu_limit = problem_.swiglu_limit;
  if (problem_.apply_router_weight_on_input) args.topk_weights = problem_.topk_weights;
  return args;
}

ProductArgs Chunk::down() const {
  ProductArgs args = product(problem_.w2);
  args.rows = at<void>(workspace_.intermediate);
  args.slots_per_row = division_by(1);
  args.row_stride = padded_row(problem_.intermediate_size);
  args.output = at<void>(workspace_.rows);
  args.output_stride = padded_row(problem_.hidden_size);
  args.depth = static_cast<std::int32_t>(problem_.intermediate_size);
  args.num_outputs = static_cast<std::int32_t>(problem_.hidden_size);
  if (!problem_.apply_router_weight_on_input) args.topk_weights = problem_.topk_weights;
  return args;
}

ProductArgs Chunk::args_of(ProductKind kind, int columns) const {
  ProductArgs args = kind == ProductKind::kGateUp ? gate_up() : down();
  args.num_columns =
      static_cast<std::uint32_t>((args.num_outputs - 1) / outputs_of_tile(args, columns) + 1);
  return args;
}

Status Chunk::multiply(ProductKind kind) const {
  if (strategy_ == kWgmma) return multiply_by_wgmma(kind, args_of(kind, kWgmmaColumns));
  const ProductTile& tile = kProductTiles[strategy_];
  ProductArgs args = args_of(kind, tile.columns);
  const WeightAccess access = kind == ProductKind::kGateUp ? accesses_.gate_up : accesses_.down;
  return launch(prepared_product_kernel(kind, is_bfloat16(), access, strategy_),
                std::int64_t{args.num_blocks} * args.num_columns, kProductThreads,
                product_shared_bytes(tile), &args, name_of(kind));
}

/// Both products, each of rows in float8_e4m3fn.
Status Chunk::multiply_fp8() const {
  if (!problem_.is_x_fp8) {
    if (Status s = quantize_x(); !s.ok()) return s;
  }
  if (Status s = multiply_fp8(ProductKind::kGateUp); !s.ok()) return s;
  if (strategy_ != kWgmma || scaling_of(problem_) != Scaling::kBlocks) {
    if (Status s = quantize_intermediate(); !s.ok()) return s;
  }
  if (Status s = multiply_fp8(ProductKind::kDown); !s.ok()) return s;
  return combine();
}

Status Chunk::quantize(const void* rows, DLDataType dtype, const float* scale,
                       std::size_t values_at, std::size_t scales_at, std::int64_t num_rows,
                       std::int64_t row_size, std::int64_t row_stride,
                       const QuantizeFp8Rows& counted_rows) const {
  core::QuantizeFp8Problem args{};
  args.x = rows;
  args.dtype = dtype;
  args.scale = scale;
  args.values = at<std::uint8_t>(values_at);
  args.scales = at<float>(scales_at);
  args.group = scale != nullptr                           ? Fp8Group::kTensor
               : scaling_of(problem_) == Scaling::kBlocks ? Fp8Group::k1x128
                                                          : Fp8Group::kRow;
  args.use_ue8m0 = problem_.use_ue8m0;
  args.num_tokens = num_rows;
  args.hidden_size = row_size;
  args.x_stride = row_stride;
  args.values_stride = padded_fp8_row(row_size);
  return run_quantize_fp8(args, context_, counted_rows);
}

Status Chunk::quantize_x() const {
  return quantize(problem_.x, problem_.dtype, problem_.x_scale, workspace_.fp8_x,
                  workspace_.fp8_x_scales, problem_.num_tokens, problem_.hidden_size,
                  problem_.x_stride, {});
}

Status Chunk::quantize_intermediate() const {
  // A row belongs to a slot, which may have no pair, or to a pair, which may have no expert.
  const QuantizeFp8Rows counted_rows =
      strategy_ == kWgmma ? QuantizeFp8Rows{at<std::int32_t>(workspace_.sorted_pairs), num_pairs_}
                          : QuantizeFp8Rows{at<std::int32_t>(workspace_.pair_experts),
                                            static_cast<std::int32_t>(problem_.num_experts)};
  // A last block that is not whole has no slots in use.
  const std::int64_t num_rows = std::min(workspace_.intermediate_rows, workspace_.max_slots);
  return quantize(at<void>(workspace_.intermediate), {kDLFloat, 32, 1}, problem_.intermediate_scale,
                  workspace_.fp8_intermediate, workspace_.fp8_intermediate_scales, num_rows,
                  problem_.intermediate_size, padded_row(problem_.intermediate_size), counted_rows);
}

Fp8ProductArgs Chunk::fp8_args_of(ProductKind kind, int columns) const {
  const bool is_gate_up = kind == ProductKind::kGateUp;
  Fp8ProductArgs args{};
  static_cast<ProductArgs&>(args) = args_of(kind, columns);
  args.weight_scales = is_gate_up ? problem_.w13.scales : problem_.w2.scales;
  if (is_gate_up && problem_.is_x_fp8) {
    args.row_scales = problem_.x_scale;
    args.row_scale_stride = problem_.x_scale_stride;
    return args;
  }
  args.rows = at<void>(is_gate_up ? workspace_.fp8_x : workspace_.fp8_intermediate);
  args.row_stride = padded_fp8_row(args.depth);
  args.row_scales = is_gate_up ? problem_.x_scale : problem_.intermediate_scale;
  if (args.row_scales != nullptr) return args;  // one for all rows
  args.row_scales =
      at<float>(is_gate_up ? workspace_.fp8_x_scales : workspace_.fp8_intermediate_scales);
  args.row_scale_stride = scales_per_row(problem_, args.depth);
  return args;
}

Status Chunk::multiply_fp8(ProductKind kind) const {
  if (strategy_ == kWgmma) return multiply_by_wgmma(kind, wgmma_fp8_args_of(kind));
  const ProductTile& tile = kProductTiles[strategy_];
  Fp8ProductArgs args = fp8_args_of(kind, tile.columns);
  const WeightAccess access = kind == ProductKind::kGateUp ? accesses_.gate_up : accesses_.down;
  return launch(prepared_fp8_product_kernel(kind, is_bfloat16(), access, strategy_),
                std::int64_t{args.num_blocks} * args.num_columns, kProductThreads,
                product_shared_bytes(tile), &args, name_of(kind));
}

WgmmaFp8Product Chunk::wgmma_fp8_args_of(ProductKind kind) const {
  WgmmaFp8Product args{};
  static_cast<Fp8ProductArgs&>(args) = fp8_args_of(kind, kWgmmaColumns);
  if (scaling_of(problem_) == Scaling::kRows) return args;
  if (kind == ProductKind::kDown) {
    args.row_scale_stride = workspace_.intermediate_rows;
    return args;
  }
  args.output = at<void>(workspace_.fp8_intermediate);
  args.output_stride = padded_fp8_row(problem_.intermediate_size);
  args.output_scales = at<float>(workspace_.fp8_intermediate_scales);
  args.output_scale_stride = workspace_.intermediate_rows;
  args.use_ue8m0 = problem_.use_ue8m0;
  return args;
}

template <typename Product>
Status Chunk::multiply_by_wgmma(ProductKind kind, const Product& product) const {
  constexpr bool kIsFp8 = std::is_same_v<Product, WgmmaFp8Product>;
  constexpr int kElementBytes = kIsFp8 ? 1 : 2;
  WgmmaArgs<Product> args{};
  args.product = product;
  args.tiles_taken = at<std::int32_t>(workspace_.block_experts) + workspace_.max_blocks +
                     (kind == ProductKind::kGateUp ? 0 : 1);
  CUresult error = encode_weights(args.product, kElementBytes, problem_.num_experts, &args.weights);
  if (error == CUDA_SUCCESS && kind == ProductKind::kDown) {
    error = encode_intermediate(args.product, kElementBytes, workspace_.intermediate_rows,
                                &args.intermediate);
  }
  if (error != CUDA_SUCCESS) return refuse_tensor_map(name_of(kind), error);
  const std::int64_t tiles = std::int64_t{args.product.num_blocks} * args.product.num_columns;
  const std::int64_t ctas = std::min<std::int64_t>(tiles, properties_in(context_).available_sms);
  return launch(prepared_wgmma_kernel(kind, is_bfloat16(), scaling_of(problem_)), ctas,
                kWgmmaThreads, kWgmmaSharedBytes, &args, name_of(kind));
}

CombineArgs Chunk::combination() const {
  CombineArgs args{};
  args.rows = at<void>(workspace_.rows);
  args.topk_ids = pair_experts();
  args.output = problem_.output;
  args.ids_are_64_bit = pair_experts_dtype().bits == 64;
  args.has_vectors = problem_.hidden_size % kCombineElements == 0 &&
                     problem_.output_stride % kCombineElements == 0 &&
                     reinterpret_cast<std::uintptr_t>(problem_.output) % kCombineBytes == 0;
  args.top_k = static_cast<std::int32_t>(problem_.top_k);
  args.hidden_size = static_cast<std::int32_t>(problem_.hidden_size);
  constexpr std::int64_t kPerCta = std::int64_t{kCombineThreads} * kCombineElements;
  args.ctas_per_token = static_cast<std::uint32_t>((problem_.hidden_size + kPerCta - 1) / kPerCta);
  args.topk_ids_stride =
      has_plain_ids(problem_, strategy_) ? problem_.topk_ids_stride : problem_.top_k;
  args.num_experts = problem_.num_experts;
  args.row_stride = padded_row(problem_.hidden_size);
  args.output_stride = problem_.output_stride;
  return args;
}

Status Chunk::combine() const {
  CombineArgs args = combination();
  return launch(prepared_combine_kernel(is_bfloat16(), args.top_k <= kFewSlots),
                problem_.num_tokens * args.ctas_per_token, kCombineThreads, 0, &args,
                "the sum over slots");
}

}  // namespace tessera::cuda
