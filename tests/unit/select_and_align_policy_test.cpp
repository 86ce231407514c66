// How the CUDA kernels of select_and_align are launched, tested without a GPU.
#include <gtest/gtest.h>

#include <string>

#include "cuda/align_block_size/layout.hpp"
#include "cuda/select_and_align/policy.hpp"

namespace tessera::cuda {
namespace {

using enum SelectAndAlignStrategy;

constexpr std::size_t kKilobyte = 1024;
constexpr DeviceProperties kH200{90, 132, 227 * kKilobyte};
constexpr DeviceProperties kA100{80, 108, 163 * kKilobyte};
constexpr DeviceProperties kOlderCode{90, 132, 227 * kKilobyte, 80};
constexpr DeviceProperties kPartition{90, 132, 227 * kKilobyte, 90, 16};

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

/// As much of the arguments as a plan reads.
SelectExpertsKernelArgs args_of(const core::SelectAndAlignProblem& problem) {
  return {.router_logits = nullptr,
          .correction_bias = nullptr,
          .num_valid_tokens = nullptr,
          .topk_weights = nullptr,
          .topk_ids = nullptr,
          .dtype = {},
          .num_tokens = problem.selection.num_tokens,
          .logits_stride = 0,
          .num_experts = static_cast<std::int32_t>(problem.selection.num_experts),
          .top_k = static_cast<std::int32_t>(problem.selection.top_k),
          .num_expert_group = 1,
          .topk_group = 1,
          .group_size = 0,
          .lanes_per_group = 1,
          .by_group_size = {},
          .scoring = Scoring::kSoftmax,
          .renormalize = false,
          .routed_scaling_factor = 1,
          .layout = select_experts_layout(problem.selection)};
}

std::string refusal(SelectAndAlignStrategy strategy, const core::SelectAndAlignProblem& problem,
                    const DeviceProperties& device = kH200) {
  const char* const reason = limitation(strategy, problem, args_of(problem), device);
  return reason == nullptr ? "" : reason;
}

TEST(SelectAndAlignPolicy, EveryPlanThatCanRunHasAPlaceForEveryTokenAndPair) {
  int can_run = 0;
  for (const std::int64_t num_tokens : {1, 2, 8, 15, 16, 17, 31, 32, 33, 100, 255, 256}) {
    for (const std::int64_t num_experts : {1, 8, 128, 129, 256, 257, 512}) {
      for (const std::int64_t top_k : {1, 2, 8, 33, 256, 512}) {
        if (top_k > num_experts) continue;
        const core::SelectAndAlignProblem problem = problem_of(num_tokens, num_experts, top_k);
        for (const SelectAndAlignStrategy strategy : {kOneCta, kCluster}) {
          if (!refusal(strategy, problem).empty()) continue;
          ++can_run;
          const SelectAndAlignPlan plan = plan_select_and_align(strategy, args_of(problem));
          EXPECT_GE(kSelectAndAlignExperts[plan.instance.size], num_experts);
          EXPECT_LE(plan.num_ctas, strategy == kOneCta ? 1 : kClusterMaxCtas);
          EXPECT_GE(plan.num_ctas * plan.tokens_per_cta, num_tokens);
          EXPECT_LT((plan.num_ctas - 1) * plan.tokens_per_cta, num_tokens) << "an idle CTA";
          EXPECT_LE(plan.ids_per_thread, 4);
          EXPECT_GE(plan.num_threads * plan.ids_per_thread, plan.tokens_per_cta * top_k);
          EXPECT_EQ(plan.blocks_memory % 16, 0U);
          EXPECT_LE(plan.shared_bytes + kStaticSharedBytes, kH200.max_shared_bytes);
        }
      }
    }
  }
  EXPECT_GT(can_run, 200);
}

TEST(SelectAndAlignPolicy, SaysWhatAStrategyCannotRun) {
  EXPECT_EQ(refusal(kOneCta, problem_of(32, 512, 8)), "");
  EXPECT_EQ(refusal(kOneCta, problem_of(33, 512, 8)), "takes 1 to 32 tokens");
  EXPECT_EQ(refusal(kOneCta, problem_of(0, 512, 8)), "takes 1 to 32 tokens");
  EXPECT_EQ(refusal(kOneCta, problem_of(1, 513, 8)), "takes at most 512 experts");
  EXPECT_EQ(refusal(kOneCta, problem_of(16, 64, 64)), "");
  EXPECT_EQ(refusal(kOneCta, problem_of(17, 64, 64)), "takes at most 4 pairs per thread");
  EXPECT_EQ(refusal(kOneCta, problem_of(32, 512, 8), kA100), "");
  EXPECT_EQ(refusal(kOneCta, problem_of(32, 512, 8), {90, 132, 16 * kKilobyte}),
            "needs more shared memory for these experts and slots than the device has");

  EXPECT_EQ(refusal(kCluster, problem_of(256, 512, 8)), "");
  EXPECT_EQ(refusal(kCluster, problem_of(257, 512, 8)), "takes 1 to 256 tokens");
  EXPECT_EQ(refusal(kCluster, problem_of(0, 512, 8)), "takes 1 to 256 tokens");
  EXPECT_EQ(refusal(kCluster, problem_of(256, 513, 8)), "takes at most 512 experts");
  EXPECT_EQ(refusal(kCluster, problem_of(256, 128, 128)), "");
  EXPECT_EQ(refusal(kCluster, problem_of(256, 129, 129)), "takes at most 4 pairs per thread");
  EXPECT_EQ(refusal(kCluster, problem_of(64, 512, 8), kA100), "needs compute capability 9.0");
  EXPECT_EQ(refusal(kCluster, problem_of(64, 512, 8), kOlderCode),
            "needs code built for compute capability 9.0");
  EXPECT_EQ(refusal(kCluster, problem_of(64, 512, 8), kPartition),
            "needs all multiprocessors of the device");
}

TEST(SelectAndAlignPolicy, PrefersOneCtaForFewTokensAndAClusterForMore) {
  EXPECT_TRUE(is_preferred(kOneCta, problem_of(8, 256, 8)));
  EXPECT_FALSE(is_preferred(kOneCta, problem_of(9, 256, 8)));
  EXPECT_FALSE(is_preferred(kOneCta, problem_of(8, 256, 8, 1024))) << "many slots";
  EXPECT_TRUE(is_preferred(kCluster, problem_of(256, 256, 8, 128)));
  EXPECT_FALSE(is_preferred(kCluster, problem_of(256, 256, 8, 4096))) << "many slots";
  core::SelectAndAlignProblem grouped = problem_of(1, 256, 8);
  grouped.selection.num_expert_group = 8;
  grouped.selection.topk_group = 4;
  EXPECT_FALSE(is_preferred(kOneCta, grouped) || is_preferred(kCluster, grouped));
}

TEST(SelectAndAlignPolicy, TheInstanceFollowsTheProblem) {
  SelectExpertsKernelArgs args = args_of(problem_of(20, 200, 8));
  args.scoring = Scoring::kSigmoid;
  SelectAndAlignPlan plan = plan_select_and_align(kCluster, args);
  EXPECT_EQ(plan.instance.size, 1);
  EXPECT_EQ(plan.instance.scoring, Scoring::kSigmoid);
  EXPECT_TRUE(plan.instance.is_plain);
  EXPECT_TRUE(to_string(plan).starts_with("10 CTAs of 512 threads, 2 tokens each, "));
  const float bias = 0;
  args.correction_bias = &bias;
  EXPECT_FALSE(plan_select_and_align(kCluster, args).instance.is_plain);
  args.correction_bias = nullptr;
  args.num_expert_group = 2;
  EXPECT_FALSE(plan_select_and_align(kOneCta, args).instance.is_plain);
}

}  // namespace
}  // namespace tessera::cuda
