#include "cuda/select_and_align/policy.hpp"

#include <algorithm>
#include <iterator>

#include "cuda/align_block_size/layout.hpp"

namespace tessera::cuda {
namespace {

using core::SelectAndAlignProblem;

constexpr int kWarpSize = 32;

/// Tokens, and slots of the blocks, up to which one CTA is faster than a cluster of several.
constexpr std::int64_t kOneCtaPreferredTokens = 8;
constexpr std::int64_t kOneCtaPreferredSlots = 8192;

/// Slots up to which a cluster writes them as fast as the launches of the two ops do.
constexpr std::int64_t kClusterPreferredSlots = 262144;

int div_up(int a, int b) { return (a + b - 1) / b; }

int threads_of(SelectAndAlignStrategy strategy) {
  return strategy == SelectAndAlignStrategy::kOneCta ? kSelectAndAlignOneCtaThreads
                                                     : kSelectAndAlignClusterThreads;
}

int max_tokens(SelectAndAlignStrategy strategy) {
  return strategy == SelectAndAlignStrategy::kOneCta ? kSelectAndAlignOneCtaMaxTokens
                                                     : kSelectAndAlignClusterMaxTokens;
}

/// As many CTAs as there are tokens for, up to the most that a cluster has.
int tokens_per_cta(SelectAndAlignStrategy strategy, int num_tokens) {
  return strategy == SelectAndAlignStrategy::kOneCta ? num_tokens
                                                     : div_up(num_tokens, kClusterMaxCtas);
}

}  // namespace

SelectAndAlignPlan plan_select_and_align(SelectAndAlignStrategy strategy,
                                         const SelectExpertsKernelArgs& selection) {
  const auto* const begin = std::begin(kSelectAndAlignExperts);
  const auto* const end = std::end(kSelectAndAlignExperts);
  const auto num_tokens = static_cast<int>(selection.num_tokens);
  const auto num_groups = static_cast<std::size_t>(selection.num_experts);
  SelectAndAlignPlan plan{};
  plan.instance.size =
      static_cast<int>(std::lower_bound(begin, end, selection.num_experts) - begin);
  plan.instance.scoring = selection.scoring;
  plan.instance.is_plain =
      selection.correction_bias == nullptr && selection.topk_group == selection.num_expert_group;
  plan.num_threads = threads_of(strategy);
  const auto num_warps = static_cast<std::size_t>(plan.num_threads / kWarpSize);
  plan.tokens_per_cta = tokens_per_cta(strategy, num_tokens);
  plan.num_ctas = div_up(num_tokens, plan.tokens_per_cta);
  plan.ids_per_thread = div_up(plan.tokens_per_cta * selection.top_k, plan.num_threads);
  plan.blocks_memory = num_warps * selection.layout.bytes();
  plan.shared_bytes = plan.blocks_memory + (strategy == SelectAndAlignStrategy::kOneCta
                                                ? OneCtaLayout(num_groups, num_warps).bytes()
                                                : ClusterLayout(num_groups, num_warps).bytes());
  return plan;
}

const char* limitation(SelectAndAlignStrategy strategy, const SelectAndAlignProblem& problem,
                       const SelectExpertsKernelArgs& selection, const DeviceProperties& device) {
  const bool is_cluster = strategy == SelectAndAlignStrategy::kCluster;
  const std::int64_t num_tokens = problem.selection.num_tokens;
  if (num_tokens < 1 || num_tokens > max_tokens(strategy)) {
    return is_cluster ? "takes 1 to 256 tokens" : "takes 1 to 32 tokens";
  }
  if (problem.selection.num_experts > *(std::end(kSelectAndAlignExperts) - 1)) {
    return "takes at most 512 experts";
  }
  if (is_cluster && device.compute_capability < 90) return "needs compute capability 9.0";
  if (is_cluster && device.code_capability < 90) {
    return "needs code built for compute capability 9.0";
  }
  if (is_cluster && device.is_partitioned()) return "needs all multiprocessors of the device";
  const SelectAndAlignPlan plan = plan_select_and_align(strategy, selection);
  if (plan.ids_per_thread > (is_cluster ? kClusterMaxIdsPerThread : kOneCtaMaxIdsPerThread)) {
    return "takes at most 4 pairs per thread";
  }
  if (plan.shared_bytes + kStaticSharedBytes > device.max_shared_bytes) {
    return "needs more shared memory for these experts and slots than the device has";
  }
  return nullptr;
}

bool is_preferred(SelectAndAlignStrategy strategy, const SelectAndAlignProblem& problem) {
  // select_experts by itself shares a token among warps where groups are removed.
  if (problem.selection.topk_group < problem.selection.num_expert_group) return false;
  const core::AlignBlockSizeProblem& pairs = problem.alignment;
  const std::int64_t num_slots =
      pairs.num_ids + std::int64_t{std::min(pairs.num_ids, pairs.num_experts)} *
                          (std::int64_t{pairs.block_size} - 1);
  if (strategy == SelectAndAlignStrategy::kCluster) {
    return problem.selection.num_tokens <= kSelectAndAlignClusterMaxTokens &&
           num_slots <= kClusterPreferredSlots;
  }
  return problem.selection.num_tokens <= kOneCtaPreferredTokens &&
         num_slots <= kOneCtaPreferredSlots;
}

std::string to_string(const SelectAndAlignPlan& plan) {
  const auto counted = [](std::size_t count, const std::string& noun) {
    return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
  };
  return counted(plan.num_ctas, "CTA") + " of " + std::to_string(plan.num_threads) + " threads, " +
         counted(plan.tokens_per_cta, "token") + " each, " + std::to_string(plan.shared_bytes) +
         " bytes of dynamic shared memory";
}

}  // namespace tessera::cuda
