#include "cuda/fused_experts/launch.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/align_block_size_problem.hpp"
#include "core/errors.hpp"
#include "core/fused_experts_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {
namespace {

using core::AlignBlockSizeProblem;
using core::FusedExpertsProblem;

constexpr std::string_view kOp = "fused_experts";

bool is_bfloat16(const FusedExpertsProblem& problem) { return problem.dtype.code == kDLBfloat; }

enum class ProductKind : std::uint8_t { kGateUp, kDown };

Kernel product_kernel(ProductKind kind, bool bfloat16, WeightAccess access, std::size_t tile) {
  static PreparedContexts prepared[2][2][kNumWeightAccesses][kProductTiles.size()];
  const auto find = kind == ProductKind::kGateUp ? gate_up_kernel : down_kernel;
  return {.function = find(bfloat16, access, tile),
          .needs_shared_memory = true,
          .static_shared_bytes = kProductStaticSharedBytes,
          .prepared =
              &prepared[static_cast<int>(kind)][bfloat16 ? 1 : 0][static_cast<int>(access)][tile]};
}

Kernel combine_kernel_for(bool bfloat16) {
  static PreparedContexts prepared[2];
  return {.function = combine_kernel(bfloat16), .prepared = &prepared[bfloat16 ? 1 : 0]};
}

Kernel pairs_kernel_prepared() {
  static PreparedContexts prepared;
  return {.function = pairs_kernel(), .prepared = &prepared};
}

/// An element of an array whose elements have this type.
template <typename Pointer>
Pointer element(Pointer array, DLDataType dtype, std::int64_t index) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte,
                                  std::byte>;
  return static_cast<Byte*>(array) + index * (dtype.bits / 8);
}

/// The steps of one call on a chunk of its tokens.
class Chunk {
 public:
  Chunk(const FusedExpertsProblem& call, std::int64_t first_token, std::int64_t num_tokens,
        std::size_t tile, const Context& context)
      : problem_(call),
        tile_(tile),
        workspace_(call, num_tokens, kProductTiles[tile]),
        accesses_(accesses_of(call)),
        context_(context),
        num_pairs_(static_cast<std::int32_t>(num_tokens * call.top_k)) {
    problem_.num_tokens = num_tokens;
    problem_.x = element(call.x, call.dtype, first_token * call.x_stride);
    problem_.topk_ids =
        element(call.topk_ids, call.topk_ids_dtype, first_token * call.topk_ids_stride);
    problem_.topk_weights =
        element(call.topk_weights, call.topk_weights_dtype, first_token * call.topk_weights_stride);
    problem_.output = element(call.output, call.dtype, first_token * call.output_stride);
    constexpr std::size_t kAlign = FusedExpertsWorkspace::kWorkspaceAlign;
    memory_ = context.workspace.data();
    memory_ += (kAlign - reinterpret_cast<std::uintptr_t>(memory_) % kAlign) % kAlign;
  }

  Status run() {
    if (!has_plain_ids(problem_)) {
      if (Status s = find_experts(); !s.ok()) return s;
    }
    if (Status s = align(); !s.ok()) return s;
    if (Status s = multiply(ProductKind::kGateUp, gate_up()); !s.ok()) return s;
    if (Status s = multiply(ProductKind::kDown, down()); !s.ok()) return s;
    return combine();
  }

  /// The call of align_block_size among the steps.
  AlignBlockSizeProblem alignment() const {
    AlignBlockSizeProblem aligned{};
    aligned.topk_ids = pair_experts();
    aligned.id_dtype = pair_experts_dtype();
    aligned.num_ids = num_pairs_;
    aligned.block_size = kProductTiles[tile_].pairs;
    aligned.num_experts = static_cast<std::int32_t>(problem_.num_experts);
    aligned.tail_expert = -1;
    aligned.sorted_token_ids = at<std::int32_t>(workspace_.sorted_pairs);
    aligned.sorted_token_ids_length = workspace_.max_slots;
    aligned.expert_ids = at<std::int32_t>(workspace_.block_experts);
    aligned.expert_ids_length = workspace_.max_blocks;
    aligned.num_tokens_post_pad = at<std::int32_t>(workspace_.num_slots);
    return aligned;
  }

  std::size_t workspace_bytes() const {
    return workspace_.bytes(align_block_size_workspace_bytes(alignment(), context_));
  }

 private:
  template <typename T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  /// The caller's ids, or what find_experts writes.
  const void* pair_experts() const {
    return has_plain_ids(problem_) ? problem_.topk_ids : at<void>(workspace_.pair_experts);
  }
  DLDataType pair_experts_dtype() const {
    return has_plain_ids(problem_) ? problem_.topk_ids_dtype : DLDataType{kDLInt, 32, 1};
  }

  Status launch(const Kernel& kernel, std::int64_t num_ctas, int num_threads,
                std::size_t shared_bytes, void* args, const char* step) const {
    const Launch launch{kernel, static_cast<int>(num_ctas), num_threads, shared_bytes};
    return launch_kernel(kOp, launch, args, context_, [&] {
      return std::string(step) + " to start with " + std::to_string(num_ctas) + " CTAs for " +
             std::to_string(problem_.num_tokens) + " tokens";
    });
  }

  Status find_experts() const {
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
    return launch(pairs_kernel_prepared(), (num_pairs_ + kPairsThreads - 1) / kPairsThreads,
                  kPairsThreads, 0, &args, "the experts of pairs");
  }

  Status align() const {
    Context inner = context_;
    inner.workspace = inner.workspace.subspan(
        static_cast<std::size_t>(memory_ - inner.workspace.data()) + workspace_.alignment);
    return run_align_block_size(alignment(), inner);
  }

  /// What both products have in common.
  ProductArgs product(const core::ExpertWeights& weights) const {
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

  ProductArgs gate_up() const {
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

  ProductArgs down() const {
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

  Status multiply(ProductKind kind, ProductArgs args) const {
    const bool is_gate_up = kind == ProductKind::kGateUp;
    const ProductTile& tile = kProductTiles[tile_];
    const std::int32_t outputs = args.is_gated ? tile.columns / 2 : tile.columns;
    args.num_columns = static_cast<std::uint32_t>((args.num_outputs - 1) / outputs + 1);
    const WeightAccess access = is_gate_up ? accesses_.gate_up : accesses_.down;
    return launch(product_kernel(kind, is_bfloat16(problem_), access, tile_),
                  std::int64_t{args.num_blocks} * args.num_columns, kProductThreads,
                  product_shared_bytes(tile), &args,
                  is_gate_up ? "the gate-up product" : "the down product");
  }

  Status combine() const {
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
    args.ctas_per_token =
        static_cast<std::uint32_t>((problem_.hidden_size + kPerCta - 1) / kPerCta);
    args.topk_ids_stride = has_plain_ids(problem_) ? problem_.topk_ids_stride : problem_.top_k;
    args.num_experts = problem_.num_experts;
    args.row_stride = padded_row(problem_.hidden_size);
    args.output_stride = problem_.output_stride;
    return launch(combine_kernel_for(is_bfloat16(problem_)),
                  problem_.num_tokens * args.ctas_per_token, kCombineThreads, 0, &args,
                  "the sum over slots");
  }

  FusedExpertsProblem problem_;
  std::size_t tile_;
  FusedExpertsWorkspace workspace_;
  ProductAccesses accesses_;
  const Context& context_;
  std::int32_t num_pairs_;
  std::byte* memory_;
};

template <std::size_t kTile>
struct TileImplementation {
  /// Enough for kElementsTile, too: the size query does not know strides and addresses, and so
  /// whether the call needs that.
  static std::size_t workspace_bytes(const FusedExpertsProblem& problem, const Context& context) {
    if (problem.num_tokens == 0) return 0;
    const std::int64_t length = tokens_per_chunk(problem);
    std::size_t bytes = 0;
    for (const std::int64_t num_tokens : {length, problem.num_tokens % length}) {
      if (num_tokens == 0) continue;
      for (const std::size_t tile : {kTile, kElementsTile}) {
        bytes = std::max(bytes, Chunk(problem, 0, num_tokens, tile, context).workspace_bytes());
      }
    }
    return bytes;
  }

  static Status run(const FusedExpertsProblem& problem, const Context& context) {
    const std::int64_t length = tokens_per_chunk(problem);
    for (std::int64_t first = 0; first < problem.num_tokens; first += length) {
      const std::int64_t num_tokens = std::min(length, problem.num_tokens - first);
      if (Status s = Chunk(problem, first, num_tokens, kTile, context).run(); !s.ok()) return s;
    }
    return {};
  }

  static Status refusal(const FusedExpertsProblem& problem, const Context&, bool forced) {
    static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                                 "the policy picks another for this shape"};
    const char* reason = limitation(kTile, problem);
    if (reason != nullptr) return Status(StatusCode::kUnsupported, reason);
    return forced || choose_tile(problem) == kTile ? Status() : Status(&kNotPreferred);
  }

  static std::string plan(const FusedExpertsProblem& problem, const Context&) {
    return describe_plan(kTile, problem);
  }

  static constexpr core::Implementation descriptor(std::string_view name) {
    return core::implementation<FusedExpertsProblem, run, workspace_bytes, refusal, plan>(name);
  }
};

}  // namespace

std::span<const core::Implementation> fused_experts_implementations() {
  static constexpr std::array<core::Implementation, kProductTiles.size()> kAll{
      TileImplementation<0>::descriptor("cuda/mma_16"),
      TileImplementation<1>::descriptor("cuda/mma_32"),
      TileImplementation<2>::descriptor("cuda/mma_64"),
      TileImplementation<3>::descriptor("cuda/mma_128"),
  };
  return kAll;
}

Status load_fused_experts_kernels(std::string_view op, int device_id,
                                  const CurrentContext& context) {
  const auto load = [&](const Kernel& kernel, const char* name) -> Status {
    if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
      return core::refuse(StatusCode::kRuntimeError, op, "kernel", std::string(name) + " to load",
                          text_of(error));
    }
    return {};
  };
  if (Status s = load(pairs_kernel_prepared(), "the experts of pairs"); !s.ok()) return s;
  for (const bool bfloat16 : {false, true}) {
    if (Status s = load(combine_kernel_for(bfloat16), "the sum over slots"); !s.ok()) return s;
    for (const auto access :
         {WeightAccess::kRows, WeightAccess::kColumns, WeightAccess::kElements}) {
      for (std::size_t tile = 0; tile < kProductTiles.size(); ++tile) {
        if (access == WeightAccess::kElements && tile != kElementsTile) continue;
        for (const ProductKind kind : {ProductKind::kGateUp, ProductKind::kDown}) {
          const Kernel kernel = product_kernel(kind, bfloat16, access, tile);
          if (Status s = load(kernel, "a product"); !s.ok()) return s;
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
