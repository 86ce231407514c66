// How the CUDA kernels of quantize_fp8 are launched, tested without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "cuda/quantize_fp8/kernel.hpp"

namespace tessera::cuda {
namespace {

constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};

core::QuantizeFp8Problem problem_of(std::int64_t num_tokens, std::int64_t hidden_size,
                                    DLDataType dtype, Fp8Group group, std::int64_t address = 256) {
  core::QuantizeFp8Problem problem{};
  problem.x = reinterpret_cast<const void*>(address);
  problem.values = reinterpret_cast<std::uint8_t*>(256);
  problem.dtype = dtype;
  problem.group = group;
  problem.num_tokens = num_tokens;
  problem.hidden_size = hidden_size;
  problem.x_stride = hidden_size;
  problem.values_stride = hidden_size;
  return problem;
}

int elements_per_word(const core::QuantizeFp8Problem& problem, const QuantizeFp8Plan& plan) {
  return plan.has_vectors ? kQuantizeFp8VectorBytes / (problem.dtype.bits / 8) : 1;
}

TEST(QuantizeFp8Plan, EveryRowHasWholeWarpsOfOneCta) {
  for (const std::int64_t tokens : {1LL, 33LL, 1024LL, 8192LL, 8193LL, 40960LL, 1LL << 20}) {
    for (const std::int64_t hidden : {1LL, 64LL, 768LL, 2048LL, 2056LL, 7168LL, 40000LL}) {
      for (const DLDataType dtype : {kBf16, kFp32}) {
        const auto problem = problem_of(tokens, hidden, dtype, Fp8Group::kRow);
        const QuantizeFp8Plan plan = plan_quantize_fp8(problem);
        const std::int64_t threads = plan.threads_per_row;
        ASSERT_EQ(plan.kernel, QuantizeFp8Kernel::kRow);
        ASSERT_EQ(threads % 32, 0);
        ASSERT_EQ(kQuantizeFp8Threads % threads, 0);
        ASSERT_GE(plan.num_ctas * kQuantizeFp8Threads, tokens * threads);
        // No CTA is without a row.
        ASSERT_LT((plan.num_ctas - 1) * kQuantizeFp8Threads, tokens * threads);
        // With fewer threads than all a row still lies in registers, and the GPU stays busy.
        if (threads < kQuantizeFp8Threads) {
          ASSERT_LE(plan.words_per_row, threads * kQuantizeFp8RowWords);
          ASSERT_GE(tokens * threads, kQuantizeFp8BusyThreads);
        }
      }
    }
  }
  const auto threads_of = [](std::int64_t tokens, std::int64_t hidden) {
    return plan_quantize_fp8(problem_of(tokens, hidden, kBf16, Fp8Group::kRow)).threads_per_row;
  };
  EXPECT_EQ(threads_of(1, 2048), 256U);
  EXPECT_EQ(threads_of(1024, 2048), 256U);
  EXPECT_EQ(threads_of(4096, 2048), 64U);
  EXPECT_EQ(threads_of(8192, 2048), 32U);
  EXPECT_EQ(threads_of(8192, 7168), 128U);
}

TEST(QuantizeFp8Plan, EveryGroupHasATeamInSomeRound) {
  for (const std::int64_t tokens : {1LL, 64LL, 1024LL, 1025LL, 4096LL, 16384LL, 300000LL}) {
    for (const std::int64_t hidden : {1LL, 128LL, 200LL, 2048LL, 7168LL}) {
      for (const std::int64_t address : {256LL, 258LL}) {
        const auto problem = problem_of(tokens, hidden, kBf16, Fp8Group::k1x128, address);
        const QuantizeFp8Plan plan = plan_quantize_fp8(problem);
        ASSERT_EQ(plan.kernel, QuantizeFp8Kernel::k1x128);
        ASSERT_EQ(plan.num_parts, problem.num_scales());
        const int team = quantize_fp8_threads_per_group(elements_per_word(problem, plan));
        const std::int64_t teams = plan.num_ctas * (kQuantizeFp8Threads / team);
        // One round of the kernel takes them all, and no CTA is without a group.
        ASSERT_GE(teams * kQuantizeFp8GroupsAtOnce, plan.num_parts);
        ASSERT_LT((plan.num_ctas - 1) * (kQuantizeFp8Threads / team), plan.num_parts);
        // Groups share a team only where the GPU stays busy.
        if (teams < plan.num_parts) {
          ASSERT_GE(teams * team, kQuantizeFp8BusyThreads);
        }
      }
    }
  }
}

TEST(QuantizeFp8Plan, ManyGroupsShareTeams) {
  const auto ctas_of = [](std::int64_t tokens) {
    return plan_quantize_fp8(problem_of(tokens, 2048, kBf16, Fp8Group::k1x128)).num_ctas;
  };
  // 16 groups a token, of 16 threads each.
  EXPECT_EQ(ctas_of(1), 1);
  EXPECT_EQ(ctas_of(2047), 2047);
  EXPECT_EQ(ctas_of(2048), 1024);
  EXPECT_EQ(ctas_of(16384), 16384 / kQuantizeFp8GroupsAtOnce);
}

TEST(QuantizeFp8Plan, NothingToDoTakesNoCta) {
  for (const Fp8Group group : {Fp8Group::kRow, Fp8Group::k1x128, Fp8Group::k128x128}) {
    EXPECT_EQ(plan_quantize_fp8(problem_of(0, 2048, kBf16, group)).num_ctas, 0);
  }
  // A row of no elements has a scale; no group has none.
  EXPECT_EQ(plan_quantize_fp8(problem_of(3, 0, kBf16, Fp8Group::kRow)).num_ctas, 3);
  EXPECT_EQ(plan_quantize_fp8(problem_of(3, 0, kBf16, Fp8Group::k1x128)).num_ctas, 0);
}

}  // namespace
}  // namespace tessera::cuda
