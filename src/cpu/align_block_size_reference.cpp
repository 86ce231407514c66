// The reference: the contract's formulas in their order, with nothing done to be fast.
#include <algorithm>
#include <utility>

#include "core/align_block_size_implementation.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/integer_ids.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;

constexpr std::int32_t kFiltered = -1;  // the group of the pairs with id -1
constexpr std::int32_t kNoGroup = -2;

/// `count` holds the size of every group, kFiltered among them.
void write_statistics(const AlignBlockSizeProblem& p, const std::int32_t* count) {
  using enum AlignBlockSizeStatistic;
  const auto statistic = [&](AlignBlockSizeStatistic which) -> double& {
    return p.statistics[static_cast<int>(which)];
  };
  std::fill_n(p.statistics, kAlignBlockSizeNumStatistics, 0.0);
  for (std::int32_t expert = 0; expert < p.num_experts; ++expert) {
    statistic(kAssignedPairs) += count[expert];
    if (count[expert] > 0) statistic(kActiveExperts) += 1;
    statistic(kMaxLoad) = std::max<double>(statistic(kMaxLoad), count[expert]);
  }
  const std::int32_t total = *p.num_tokens_post_pad;
  const std::int32_t num_blocks = total / p.block_size;
  statistic(kUsedBlocks) = num_blocks;
  statistic(kPaddingSlots) = total - statistic(kAssignedPairs) - count[kFiltered];
  statistic(kMeanLoad) = statistic(kAssignedPairs) / p.num_experts;
}

/// Writes the number of the elements of `values` that are invalid, the first of them, and its
/// value.
template <typename T, typename IsInvalid>
void write_invalid(const T* values, std::int64_t length, IsInvalid is_invalid,
                   std::int64_t* results) {
  std::int64_t number = 0;
  std::int64_t first = -1;
  for (std::int64_t i = 0; i < length; ++i) {
    if (!is_invalid(i)) continue;
    if (number == 0) first = i;
    ++number;
  }
  results[0] = number;
  results[1] = first;
  results[2] = first == -1 ? 0 : static_cast<std::int64_t>(values[first]);
}

}  // namespace

std::size_t reference_workspace_bytes(const AlignBlockSizeShape& shape, const Context&) {
  return Workspace::bytes_for(2 * (shape.num_experts + 1));
}

Status align_block_size_reference(const AlignBlockSizeProblem& p, const Context& context) {
  with_typed_ids(p, [&](const auto* ids) {
    const auto is_expert = [&](std::int64_t i) {
      return std::cmp_greater_equal(ids[i], 0) && std::cmp_less(ids[i], p.num_experts);
    };
    const auto is_filtered = [&](std::int64_t i) {
      return p.filtered_group && std::cmp_equal(ids[i], -1);
    };
    const auto is_invalid = [&](std::int64_t i) { return !is_expert(i) && !is_filtered(i); };
    const auto map = [&](std::int32_t expert) {
      return core::mapped_expert(p.expert_map, p.num_experts, expert);
    };
    const auto group_of = [&](std::int64_t i) {
      if (is_filtered(i)) return kFiltered;
      if (!is_expert(i)) return kNoGroup;
      const auto expert = static_cast<std::int32_t>(ids[i]);
      if (!p.drops_remote) return expert;
      return map(expert) == -1 ? kNoGroup : map(expert);
    };
    // Of the group -1 and all experts.
    std::int32_t* const count = Workspace::ints_in(context.workspace) + 1;
    std::int32_t* const next = count + p.num_experts + 1;

    std::fill_n(count - 1, p.num_experts + 1, 0);
    std::int32_t num_dropped = 0;
    for (std::int64_t i = 0; i < p.num_ids; ++i) {
      if (group_of(i) != kNoGroup) ++count[group_of(i)];
      if (is_invalid(i)) ++num_dropped;
    }

    std::fill_n(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);
    std::fill_n(p.expert_ids, p.expert_ids_length, p.map_tail ? map(p.tail_expert) : p.tail_expert);
    std::int32_t block = 0;
    for (std::int32_t group = kFiltered; group < p.num_experts; ++group) {
      const bool is_mapped_afterwards = p.expert_map != nullptr && !p.drops_remote;
      next[group] = block * p.block_size;
      for (std::int64_t placed = 0; placed < count[group]; placed += p.block_size) {
        p.expert_ids[block++] = is_mapped_afterwards ? map(group) : group;
      }
    }
    *p.num_tokens_post_pad = block * p.block_size;

    for (std::int32_t i = 0; i < p.num_ids; ++i) {
      if (group_of(i) != kNoGroup) p.sorted_token_ids[next[group_of(i)]++] = i;
    }
    if (p.expert_counts != nullptr) std::copy_n(count, p.num_experts, p.expert_counts);
    if (p.num_dropped != nullptr) *p.num_dropped = num_dropped;
    if (p.statistics != nullptr) write_statistics(p, count);
    if (p.validation != nullptr) {
      using enum AlignBlockSizeValidation;
      write_invalid(ids, p.num_ids, is_invalid, p.validation + static_cast<int>(kNumInvalidIds));
      const auto is_invalid_entry = [&](std::int64_t expert) {
        return p.expert_map[expert] < -1 || p.expert_map[expert] >= p.num_experts;
      };
      write_invalid(p.expert_map, p.expert_map == nullptr ? 0 : p.num_experts, is_invalid_entry,
                    p.validation + static_cast<int>(kNumInvalidMapEntries));
    }
  });
  return {};
}

}  // namespace tessera::cpu
