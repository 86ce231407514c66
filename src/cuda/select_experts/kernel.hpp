// What the launcher of select_experts and its kernels share, and how a launch is planned. No CUDA
// headers, so that it can be tested without a GPU.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "core/select_experts_problem.hpp"
#include "cuda/parts/division.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// The numbers of experts up to which a warp keeps a token's experts in registers, 32 for each
/// register of a lane. Above the last one they are in shared memory.
inline constexpr std::int64_t kSelectExpertsInRegisters[] = {32, 64, 128, 256, 512};
inline constexpr int kNumSelectExpertsSizes = 6;
inline constexpr int kNumScorings = 3;

/// Experts that a warp ranks at once for the slots of a token: one for each lane.
inline constexpr std::int32_t kSelectExpertsMaxCandidates = 32;

/// Slots whose values are added up at once, zeros after the last one.
inline constexpr std::int32_t kSelectExpertsSlotsAtOnce = 8;

/// What the slot of a token holds at first: its expert, and that one's logit, or with a bias its
/// score. Before, a candidate.
struct SelectExpertsSlot {
  std::int32_t expert;
  float value;
};

/// The shared memory of a warp, read in words of 16 bytes: slots come in multiples of eight, and
/// groups in multiples of four.
struct SelectExpertsLayout {
  Section<std::uint32_t> candidates;  ///< keys
  Section<SelectExpertsSlot> slots;
  Section<std::uint32_t> group_keys;   ///< the scores of groups, where some are removed
  Section<std::uint32_t> group_stays;  ///< flags
  Section<std::uint32_t> keys;         ///< where groups are removed, or they are not in registers
  Section<float> scores;               ///< where they are not in registers

  constexpr SelectExpertsLayout(std::size_t num_slots, std::size_t num_groups, std::size_t num_keys,
                                std::size_t num_scores)
      : candidates(0, kSelectExpertsMaxCandidates),
        slots(candidates.end, num_slots),
        group_keys(slots.end, num_groups),
        group_stays(group_keys.end, num_groups),
        keys(group_stays.end, num_keys),
        scores(keys.end, num_scores) {}
  constexpr std::size_t bytes() const { return (scores.end + 15) / 16 * 16; }
};

/// Whether a warp has a token's experts in registers.
constexpr bool select_experts_in_registers(std::int64_t num_experts) {
  return num_experts <= *(std::end(kSelectExpertsInRegisters) - 1);
}

/// The layout of a warp's shared memory for a problem.
constexpr SelectExpertsLayout select_experts_layout(const core::SelectExpertsProblem& problem) {
  const bool in_registers = select_experts_in_registers(problem.num_experts);
  const bool removes_groups = problem.topk_group < problem.num_expert_group;
  const auto multiple = [](std::int64_t size, std::int64_t of) {
    return static_cast<std::size_t>((size + of - 1) / of * of);
  };
  const std::size_t experts = multiple(problem.num_experts, 32);
  return {std::max(multiple(problem.top_k, kSelectExpertsSlotsAtOnce),
                   std::size_t{kSelectExpertsMaxCandidates}),
          removes_groups ? multiple(problem.num_expert_group, 4) : 0,
          removes_groups || !in_registers ? experts : 0, in_registers ? 0 : experts};
}

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
  SelectExpertsLayout layout;  ///< of each warp
};

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

/// Warps that share a token, each with at most 32 of its experts.
inline constexpr std::int32_t kSelectExpertsMaxParts = 16;
inline constexpr std::int32_t kSelectExpertsMinList = 4;  ///< experts that a part lists, at least

struct SelectExpertsPartsArgs {
  SelectExpertsKernelArgs of_warp;
  std::int32_t num_parts;
  std::int32_t part_size;      ///< experts of a part, at most 32
  std::int32_t num_that_stay;  ///< parts whose experts may be chosen
  std::int32_t list_shift;     ///< a part lists its best 2^list_shift experts, 4 to 32
};

/// The kernel in which the warps of a CTA share a token.
const void* select_experts_parts_kernel(Scoring scoring, bool has_bias);

/// Its arguments for a problem.
SelectExpertsPartsArgs select_experts_parts_args(const core::SelectExpertsProblem& problem);

}  // namespace tessera::cuda
