#include "cuda/moe_permute/launch.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "core/align_block_size_problem.hpp"
#include "core/errors.hpp"
#include "core/moe_permute_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/fused_experts/prepared_kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/moe_permute/kernel.hpp"

namespace tessera::cuda {
namespace {

using core::AlignBlockSizeProblem;
using core::MoePermuteProblem;

constexpr std::string_view kOp = "moe_permute";

/// The sizes of words: of a vector, and of the elements that x may have.
constexpr std::array<int, 4> kCopiedWordBytes{kMoePermuteVectorBytes, 1, 2, 4};

Kernel kernel_of(int word_bytes) {
  static std::array<PreparedContexts, kMoePermuteVectorBytes + 1> prepared;
  return {.function = moe_permute_kernel(word_bytes),
          .prepared = &prepared[static_cast<std::size_t>(word_bytes)]};
}

/// Offsets of arrays in a workspace that begins at a multiple of kAlign.
struct Workspace {
  static constexpr std::size_t kAlign = 256;

  explicit Workspace(const MoePermuteProblem& p)
      : max_blocks((p.capacity + p.block_size - 1) / p.block_size) {
    pair_experts = add(p.has_map ? p.num_pairs() : 0);
    pairs = add(p.capacity);
    block_experts = add(max_blocks);
    num_rows = add(1);
  }

  std::size_t pair_experts;   ///< int32 [pair], where a map is given
  std::size_t pairs;          ///< int32 [row]
  std::size_t block_experts;  ///< int32 [block]
  std::size_t num_rows;       ///< int32
  std::size_t end = 0;        ///< where the workspace of align_block_size begins
  std::int64_t max_blocks;

 private:
  std::size_t add(std::int64_t length) {
    const std::size_t begin = end;
    end += (static_cast<std::size_t>(length) * sizeof(std::int32_t) + kAlign - 1) / kAlign * kAlign;
    return begin;
  }
};

/// The steps of one call.
class Call {
 public:
  Call(const MoePermuteProblem& problem, const Context& context)
      : problem_(problem), workspace_(problem), context_(context) {
    memory_ = context.workspace.data();
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory_) % Workspace::kAlign;
    memory_ += (Workspace::kAlign - past) % Workspace::kAlign;
  }

  std::size_t workspace_bytes() const {
    return workspace_.end + align_block_size_workspace_bytes(alignment(), context_) +
           Workspace::kAlign;
  }

  Status run() const {
    if (problem_.has_map && problem_.num_tokens > 0) {
      if (Status s = find_experts(); !s.ok()) return s;
    }
    if (Status s = align(); !s.ok()) return s;
    return write_rows();
  }

 private:
  /// Null where there is no memory yet, as for a query.
  template <typename T>
  T* at(std::size_t offset) const {
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + offset);
  }

  /// The caller's ids, or what find_experts writes.
  const void* ids() const {
    return problem_.has_map ? at<void>(workspace_.pair_experts) : problem_.topk_ids;
  }
  DLDataType id_dtype() const {
    return problem_.has_map ? DLDataType{kDLInt, 32, 1} : problem_.topk_ids_dtype;
  }
  std::int32_t num_pairs() const { return static_cast<std::int32_t>(problem_.num_pairs()); }

  /// The call of align_block_size among the steps.
  AlignBlockSizeProblem alignment() const {
    AlignBlockSizeProblem aligned{};
    aligned.topk_ids = ids();
    aligned.id_dtype = id_dtype();
    aligned.num_ids = num_pairs();
    aligned.block_size = static_cast<std::int32_t>(problem_.block_size);
    aligned.num_experts = static_cast<std::int32_t>(problem_.num_experts);
    aligned.tail_expert = -1;
    aligned.sorted_token_ids = at<std::int32_t>(workspace_.pairs);
    aligned.sorted_token_ids_length = problem_.capacity;
    aligned.expert_ids = at<std::int32_t>(workspace_.block_experts);
    aligned.expert_ids_length = workspace_.max_blocks;
    aligned.num_tokens_post_pad = at<std::int32_t>(workspace_.num_rows);
    aligned.slots_of_ids = problem_.inverse;
    return aligned;
  }

  Status launch(const Kernel& kernel, std::int64_t num_ctas, int num_threads, void* args,
                const char* step) const {
    const Launch launch{kernel, static_cast<int>(num_ctas), num_threads, 0};
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
    args.num_pairs = num_pairs();
    args.topk_ids_stride = problem_.top_k;
    args.num_global_experts = problem_.num_global_experts;
    args.num_experts = problem_.num_experts;
    const std::int64_t num_ctas = (problem_.num_pairs() + kPairsThreads - 1) / kPairsThreads;
    return launch(prepared_pairs_kernel(), num_ctas, kPairsThreads, &args, "the experts of pairs");
  }

  Status align() const {
    Context inner = context_;
    inner.workspace = inner.workspace.subspan(
        static_cast<std::size_t>(memory_ - inner.workspace.data()) + workspace_.end);
    return run_align_block_size(alignment(), inner);
  }

  Status write_rows() const {
    const MoePermutePlan plan = plan_moe_permute(problem_);
    const std::int64_t element_bytes = problem_.dtype.bits / 8;
    MoePermuteKernelArgs args{};
    args.sorted = {at<std::int32_t>(workspace_.pairs),
                   at<std::int32_t>(workspace_.block_experts),
                   at<std::int32_t>(workspace_.num_rows),
                   num_pairs(),
                   static_cast<std::int32_t>(problem_.capacity),
                   static_cast<std::int32_t>(workspace_.max_blocks),
                   static_cast<std::int32_t>(problem_.block_size)};
    args.num_experts = static_cast<std::int32_t>(problem_.num_experts);
    args.expert_offsets = problem_.expert_offsets;
    args.inverse = problem_.inverse;
    args.x = problem_.x;
    args.rows = problem_.rows;
    args.top_k = static_cast<std::int32_t>(problem_.top_k);
    args.words_per_row = plan.words_per_row;
    args.words_per_part = plan.words_per_part;
    args.parts_per_row = plan.parts_per_row;
    args.num_offset_ctas = static_cast<std::uint32_t>(plan.num_offset_ctas);
    args.num_padding_ctas = static_cast<std::uint32_t>(plan.num_padding_ctas);
    args.x_stride = problem_.x_stride * element_bytes;
    args.rows_stride = problem_.rows_stride * element_bytes;
    return launch(kernel_of(plan.word_bytes), plan.num_ctas, kMoePermuteThreads, &args,
                  "the copies of rows");
  }

  const MoePermuteProblem& problem_;
  const Workspace workspace_;
  const Context& context_;
  std::byte* memory_;
};

std::size_t workspace_bytes(const MoePermuteProblem& problem, const Context& context) {
  return Call(problem, context).workspace_bytes();
}

Status refusal(const MoePermuteProblem& problem, const Context&, bool) {
  constexpr std::int64_t kMaxCtas = std::numeric_limits<std::int32_t>::max();
  const std::int64_t num_ctas = plan_moe_permute(problem).num_ctas;
  if (num_ctas <= kMaxCtas) return {};
  return core::refuse(StatusCode::kUnsupported, kOp, "x.shape",
                      "rows that a grid of " + std::to_string(kMaxCtas) + " CTAs can copy",
                      "rows for " + std::to_string(num_ctas));
}

Status run(const MoePermuteProblem& problem, const Context& context) {
  return Call(problem, context).run();
}

}  // namespace

std::span<const core::Implementation> moe_permute_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<MoePermuteProblem, run, workspace_bytes, refusal>("cuda/tokens"),
  };
  return kAll;
}

Status load_moe_permute_kernels(std::string_view op, int device_id, const CurrentContext& context) {
  const auto load = [&](const Kernel& kernel) -> Status {
    if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
      return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/tokens to load",
                          text_of(error));
    }
    return {};
  };
  for (const int word_bytes : kCopiedWordBytes) {
    if (Status s = load(kernel_of(word_bytes)); !s.ok()) return s;
  }
  return {};
}

}  // namespace tessera::cuda
