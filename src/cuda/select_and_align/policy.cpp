#include "cuda/select_and_align/policy.hpp"

#include <algorithm>
#include <iterator>

namespace tessera::cuda {
namespace {

using core::SelectAndAlignProblem;

/// Slots of the blocks up to which one CTA fills them as fast as the kernels of align_block_size.
constexpr std::int64_t kPreferredSlots = 8192;

}  // namespace

SelectAndAlignPlan plan_select_and_align(const SelectAndAlignProblem& problem) {
  const core::SelectExpertsProblem& selection = problem.selection;
  const auto* const begin = std::begin(kSelectAndAlignExperts);
  const auto* const end = std::end(kSelectAndAlignExperts);
  SelectAndAlignPlan plan{};
  plan.instance.size =
      static_cast<int>(std::lower_bound(begin, end, selection.num_experts) - begin);
  plan.instance.scoring = selection.scoring;
  plan.instance.is_plain =
      selection.correction_bias == nullptr && selection.topk_group == selection.num_expert_group;
  plan.shared_bytes = kSelectAndAlignMaxTokens * select_experts_layout(selection).bytes();
  return plan;
}

const char* one_cta_limitation(const SelectAndAlignProblem& problem) {
  const std::int64_t num_tokens = problem.selection.num_tokens;
  if (num_tokens < 1 || num_tokens > kSelectAndAlignMaxTokens) return "takes 1 to 8 tokens";
  if (problem.alignment.num_ids > kSelectAndAlignMaxPairs) return "takes at most 64 pairs";
  if (problem.selection.num_experts > *(std::end(kSelectAndAlignExperts) - 1)) {
    return "takes at most 512 experts";
  }
  if (problem.alignment.statistics != nullptr) return "reports no statistics";
  return nullptr;
}

bool prefers_one_cta(const SelectAndAlignProblem& problem) {
  // select_experts by itself shares a token among warps where groups are removed.
  if (problem.selection.topk_group < problem.selection.num_expert_group) return false;
  const core::AlignBlockSizeProblem& pairs = problem.alignment;
  const std::int64_t num_slots =
      pairs.num_ids + std::int64_t{std::min(pairs.num_ids, pairs.num_experts)} *
                          (std::int64_t{pairs.block_size} - 1);
  return num_slots <= kPreferredSlots;
}

}  // namespace tessera::cuda
