// How the CUDA kernel of select_and_align is launched, tested without a GPU.
#include <gtest/gtest.h>

#include <string>

#include "cuda/select_and_align/policy.hpp"

namespace tessera::cuda {
namespace {

core::SelectAndAlignProblem problem_of(std::int64_t num_tokens, std::int64_t num_experts,
                                       std::int64_t top_k, std::int32_t block_size = 16) {
  core::SelectAndAlignProblem problem{};
  problem.selection.num_tokens = num_tokens;
  problem.selection.num_experts = num_experts;
  problem.selection.top_k = top_k;
  problem.selection.num_expert_group = 1;
  problem.selection.topk_group = 1;
  problem.alignment.num_ids = static_cast<std::int32_t>(num_tokens * top_k);
  problem.alignment.num_experts = static_cast<std::int32_t>(num_experts);
  problem.alignment.block_size = block_size;
  return problem;
}

/// As if groups were removed, which takes the most shared memory.
SelectAndAlignPlan plan_of(core::SelectAndAlignProblem problem, std::int64_t num_groups = 1) {
  problem.selection.num_expert_group = num_groups;
  return plan_select_and_align(problem);
}

std::string refusal(const core::SelectAndAlignProblem& problem) {
  const char* const reason = one_cta_limitation(problem);
  return reason == nullptr ? "" : reason;
}

TEST(SelectAndAlignPolicy, EveryPlanHasAnInstanceAndFitsIntoTheSharedMemoryOfEveryDevice) {
  constexpr std::size_t kLeastSharedBytes = std::size_t{99} * 1024;  // compute capability 8.6
  int can_run = 0;
  for (std::int64_t num_tokens = 0; num_tokens <= 9; ++num_tokens) {
    for (const std::int64_t num_experts : {1, 8, 128, 129, 256, 257, 512, 513}) {
      for (const std::int64_t top_k : {1, 2, 8, 9, 33, 64, 65}) {
        if (top_k > num_experts) continue;
        const core::SelectAndAlignProblem problem = problem_of(num_tokens, num_experts, top_k);
        if (!refusal(problem).empty()) continue;
        ++can_run;
        const SelectAndAlignPlan plan = plan_of(problem, num_experts);
        EXPECT_GE(kSelectAndAlignExperts[plan.instance.size], num_experts);
        EXPECT_LE(plan.shared_bytes + sizeof(SelectAndAlignPairs), kLeastSharedBytes);
      }
    }
  }
  EXPECT_GT(can_run, 100);
}

TEST(SelectAndAlignPolicy, SaysWhatOneCtaCannotRun) {
  EXPECT_EQ(refusal(problem_of(8, 512, 8)), "");
  EXPECT_EQ(refusal(problem_of(1, 64, 64)), "");
  EXPECT_EQ(refusal(problem_of(0, 512, 8)), "takes 1 to 8 tokens");
  EXPECT_EQ(refusal(problem_of(9, 512, 1)), "takes 1 to 8 tokens");
  EXPECT_EQ(refusal(problem_of(8, 512, 9)), "takes at most 64 pairs");
  EXPECT_EQ(refusal(problem_of(1, 65, 65)), "takes at most 64 pairs");
  EXPECT_EQ(refusal(problem_of(1, 513, 8)), "takes at most 512 experts");
  core::SelectAndAlignProblem reported = problem_of(1, 512, 8);
  double statistics = 0;
  reported.alignment.statistics = &statistics;
  EXPECT_EQ(refusal(reported), "reports no statistics");
}

TEST(SelectAndAlignPolicy, PrefersOneCtaUnlessGroupsAreRemovedOrSlotsAreMany) {
  EXPECT_TRUE(prefers_one_cta(problem_of(8, 256, 8)));
  EXPECT_TRUE(prefers_one_cta(problem_of(8, 256, 8, 128)));
  EXPECT_FALSE(prefers_one_cta(problem_of(8, 256, 8, 129))) << "many slots";
  core::SelectAndAlignProblem grouped = problem_of(1, 256, 8);
  grouped.selection.num_expert_group = 8;
  grouped.selection.topk_group = 4;
  EXPECT_FALSE(prefers_one_cta(grouped));
}

TEST(SelectAndAlignPolicy, TheInstanceFollowsTheProblem) {
  core::SelectAndAlignProblem problem = problem_of(2, 200, 8);
  problem.selection.scoring = Scoring::kSigmoid;
  const SelectAndAlignInstance instance = plan_of(problem).instance;
  EXPECT_EQ(instance.size, 1);
  EXPECT_EQ(instance.scoring, Scoring::kSigmoid);
  EXPECT_TRUE(instance.is_plain);
  EXPECT_FALSE(plan_of(problem, 2).instance.is_plain);
  const float bias = 0;
  problem.selection.correction_bias = &bias;
  EXPECT_FALSE(plan_of(problem).instance.is_plain);
}

}  // namespace
}  // namespace tessera::cuda
