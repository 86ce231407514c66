// The step that the peers share: from the sizes of the groups to where each begins, in one CTA.
#pragma once

#include <cub/block/block_scan.cuh>

#include "launch.cuh"

namespace tessera::bench {

inline constexpr int kPlanThreads = 1024;
using PlanScan = cub::BlockScan<std::int32_t, kPlanThreads>;

/// Writes the first slot of every group to `starts`, and all of expert_ids and num_tokens_post_pad.
/// `count_of(expert)` is a group's size. Called by all threads of a CTA of kPlanThreads.
template <typename Id, typename CountOf>
__device__ void plan_blocks(const Problem<Id>& problem, std::int32_t* starts, CountOf count_of,
                            PlanScan::TempStorage& scan_storage) {
  const std::int32_t block_size = problem.block_size;
  const auto blocks_of = [&](std::int32_t expert) {
    return (count_of(expert) + block_size - 1) / block_size;
  };
  const std::int32_t thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t share = (problem.num_experts + kPlanThreads - 1) / kPlanThreads;
  const std::int32_t begin = min(thread * share, problem.num_experts);
  const std::int32_t end = min(begin + share, problem.num_experts);
  std::int32_t own_blocks = 0;
  for (std::int32_t expert = begin; expert < end; ++expert) own_blocks += blocks_of(expert);
  std::int32_t block = 0;
  std::int32_t total_blocks = 0;
  PlanScan(scan_storage).ExclusiveSum(own_blocks, block, total_blocks);
  for (std::int32_t expert = begin; expert < end; ++expert) {
    starts[expert] = block * block_size;
    const std::int32_t shown = problem.shown_expert(expert);
    for (const std::int32_t last = block + blocks_of(expert); block < last; ++block) {
      problem.expert_ids[block] = shown;
    }
  }
  for (std::int32_t i = total_blocks + thread; i < problem.num_blocks; i += kPlanThreads) {
    problem.expert_ids[i] = -1;
  }
  if (thread == 0) *problem.num_tokens_post_pad = total_blocks * block_size;
}

}  // namespace tessera::bench
