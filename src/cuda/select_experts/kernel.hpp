// What the launcher of select_experts and its kernels share, and how a launch is planned. No CUDA
// headers, so that it can be tested without a GPU.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>

#include "core/select_experts_problem.hpp"
#include "cuda/parts/division.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// The numbers of experts up to which a warp keeps a token's experts in registers, 32 for each
/// register of a lane. Above the last one they are in shared memory.
inline constexpr std::int64_t kSelectExpertsInRegisters[] = {32, 64, 128, 256, 512};
inline constexpr int kNumSelectExpertsSizes = 6;
inline constexpr int kNumScorings = 3;

struct SelectExpertsKernelArgs {
  const void* router_logits;
  const float* correction_bias;
  const std::int32_t* num_valid_tokens;
  float* topk_weights;
  std::int32_t* topk_ids;
  DLDataType dtype;
  std::int64_t num_tokens;
  std::int64_t logits_stride;
  std::int32_t num_experts;
  std::int32_t top_k;
  std::int32_t num_expert_group;
  std::int32_t topk_group;
  std::int32_t group_size;
  std::int32_t lanes_per_group;  ///< of a warp: a power of two
  Division by_group_size;
  Scoring scoring;
  bool renormalize;
  float routed_scaling_factor;
};

/// Experts that a warp ranks at once for the slots of a token: one for each lane.
inline constexpr std::int32_t kSelectExpertsMaxCandidates = 32;

/// The shared memory of a warp, read in words of 16 bytes: slots, candidates and groups come in
/// multiples of four.
struct SelectExpertsLayout {
  Section<float> slot_values;          ///< the logit of the slot's expert, or with a bias its score
  Section<std::int32_t> slot_ids;      ///< its expert; before, both arrays hold candidates
  Section<std::uint32_t> candidates;   ///< keys
  Section<std::uint32_t> group_keys;   ///< the scores of groups, where some are removed
  Section<std::uint32_t> group_stays;  ///< flags
  Section<std::uint32_t> keys;         ///< where groups are removed, or they are not in registers
  Section<float> scores;               ///< where they are not in registers

  constexpr SelectExpertsLayout(std::size_t num_slots, std::size_t num_groups, std::size_t num_keys,
                                std::size_t num_scores)
      : slot_values(0, num_slots),
        slot_ids(slot_values.end, num_slots),
        candidates(slot_ids.end, kSelectExpertsMaxCandidates),
        group_keys(candidates.end, num_groups),
        group_stays(group_keys.end, num_groups),
        keys(group_stays.end, num_keys),
        scores(keys.end, num_scores) {}
  constexpr std::size_t bytes() const { return (scores.end + 15) / 16 * 16; }
};

/// The layout of a warp's shared memory for a call.
constexpr SelectExpertsLayout select_experts_layout(const SelectExpertsKernelArgs& args,
                                                    bool in_registers) {
  constexpr std::int32_t kWarp = 32;
  const bool removes_groups = args.topk_group < args.num_expert_group;
  const std::int32_t slots = args.top_k < kSelectExpertsMaxCandidates ? kSelectExpertsMaxCandidates
                                                                      : (args.top_k + 3) / 4 * 4;
  const std::int32_t groups = removes_groups ? (args.num_expert_group + 3) / 4 * 4 : 0;
  const std::int32_t experts = (args.num_experts + kWarp - 1) / kWarp * kWarp;
  return {static_cast<std::size_t>(slots), static_cast<std::size_t>(groups),
          static_cast<std::size_t>(removes_groups || !in_registers ? experts : 0),
          static_cast<std::size_t>(in_registers ? 0 : experts)};
}

/// The kernel for a place in kSelectExpertsInRegisters, or after its end. `is_plain`: neither a
/// bias nor groups that are removed. Each warp of a CTA selects for one token.
const void* select_experts_kernel(int size, Scoring scoring, bool is_plain);

struct SelectExpertsPlan {
  int size;  ///< of select_experts_kernel()
  bool is_plain;
  int warps_per_cta;
  std::int64_t num_ctas;
  std::size_t shared_bytes;  ///< of a CTA
};

/// The arguments of the kernel for a problem.
SelectExpertsKernelArgs select_experts_kernel_args(const core::SelectExpertsProblem& problem);

SelectExpertsPlan plan_select_experts(const SelectExpertsKernelArgs& args);

}  // namespace tessera::cuda
