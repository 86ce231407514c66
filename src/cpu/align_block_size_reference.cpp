// The reference: the contract's formulas in their order, with nothing done to be fast.
#include <algorithm>
#include <utility>

#include "core/align_block_size_implementation.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/integer_ids.hpp"
#include "cpu/read_once.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;

constexpr std::int32_t kFiltered = -1;  // the group of the pairs with id -1

/// A pair that is in a group. Pairs are ordered by group, and within it by index.
struct Pair {
  std::int32_t group;
  std::int32_t index;

  auto operator<=>(const Pair&) const = default;
};

/// The elements of an input that are invalid.
struct Invalid {
  std::int64_t number = 0;
  std::int64_t first = -1;
  std::int64_t first_value = 0;

  void add(std::int64_t position, std::int64_t value) {
    if (number == 0) {
      first = position;
      first_value = value;
    }
    ++number;
  }

  void write(std::int64_t* results) const {
    results[0] = number;
    results[1] = first;
    results[2] = first_value;
  }
};

Invalid invalid_map_entries(const AlignBlockSizeProblem& p) {
  Invalid invalid;
  for (std::int32_t expert = 0; p.expert_map != nullptr && expert < p.num_experts; ++expert) {
    const std::int32_t entry = read_once(p.expert_map + expert);
    if (entry < -1 || entry >= p.num_experts) invalid.add(expert, entry);
  }
  return invalid;
}

/// Writes the pairs that are in a group to `pairs`, in ascending order of their indices, and
/// returns their end. Every id is read once: it may change at any time.
template <typename Id>
Pair* find_pairs(const AlignBlockSizeProblem& p, const Id* ids, Pair* pairs, Invalid* invalid) {
  for (std::int32_t i = 0; i < p.num_ids; ++i) {
    const Id id = read_once(ids + i);
    if (p.filtered_group && std::cmp_equal(id, -1)) {
      *pairs++ = {kFiltered, i};
    } else if (std::cmp_less(id, 0) || std::cmp_greater_equal(id, p.num_experts)) {
      invalid->add(i, static_cast<std::int64_t>(id));
    } else {
      const auto expert = static_cast<std::int32_t>(id);
      const std::int32_t group =
          p.drops_remote ? mapped_expert(p.expert_map, p.num_experts, expert) : expert;
      if (!p.drops_remote || group != -1) *pairs++ = {group, i};
    }
  }
  return pairs;
}

}  // namespace

std::size_t reference_workspace_bytes(const AlignBlockSizeShape& shape, const Context&) {
  return Workspace::bytes_for<Pair>(shape.num_ids);
}

Status align_block_size_reference(const AlignBlockSizeProblem& p, const Context& context) {
  const auto map = [&](std::int32_t expert) {
    return mapped_expert(p.expert_map, p.num_experts, expert);
  };
  Invalid invalid_ids;
  Pair* const pairs = Workspace::array_in<Pair>(context.workspace);
  Pair* pairs_end = pairs;
  with_typed_ids(p, [&](const auto* ids) { pairs_end = find_pairs(p, ids, pairs, &invalid_ids); });
  std::sort(pairs, pairs_end);

  std::fill_n(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);
  std::fill_n(p.expert_ids, p.expert_ids_length, p.map_tail ? map(p.tail_expert) : p.tail_expert);
  if (p.expert_counts != nullptr) std::fill_n(p.expert_counts, p.num_experts, 0);
  std::int32_t block = 0;
  std::int32_t num_assigned = 0, num_active = 0, max_load = 0, num_filtered = 0;
  for (const Pair* group_begin = pairs; group_begin != pairs_end;) {
    const std::int32_t group = group_begin->group;
    const Pair* const group_end =
        std::find_if(group_begin, static_cast<const Pair*>(pairs_end),
                     [&](const Pair& pair) { return pair.group != group; });
    const auto count = static_cast<std::int32_t>(group_end - group_begin);
    std::transform(group_begin, group_end, p.sorted_token_ids + block * p.block_size,
                   [](const Pair& pair) { return pair.index; });
    const bool is_mapped_afterwards = p.expert_map != nullptr && !p.drops_remote;
    for (std::int64_t placed = 0; placed < count; placed += p.block_size) {
      p.expert_ids[block++] = is_mapped_afterwards ? map(group) : group;
    }
    if (group == kFiltered) {
      num_filtered = count;
    } else {
      if (p.expert_counts != nullptr) p.expert_counts[group] = count;
      num_assigned += count;
      num_active += 1;
      max_load = std::max(max_load, count);
    }
    group_begin = group_end;
  }
  const std::int32_t total = block * p.block_size;
  *p.num_tokens_post_pad = total;
  if (p.num_dropped != nullptr) *p.num_dropped = static_cast<std::int32_t>(invalid_ids.number);
  if (p.statistics != nullptr) {
    using enum AlignBlockSizeStatistic;
    const auto set = [&](AlignBlockSizeStatistic statistic, double value) {
      p.statistics[static_cast<int>(statistic)] = value;
    };
    set(kAssignedPairs, num_assigned);
    set(kActiveExperts, num_active);
    set(kUsedBlocks, block);
    set(kPaddingSlots, total - num_assigned - num_filtered);
    set(kMaxLoad, max_load);
    set(kMeanLoad, static_cast<double>(num_assigned) / p.num_experts);
  }
  if (p.validation != nullptr) {
    using enum AlignBlockSizeValidation;
    invalid_ids.write(p.validation + static_cast<int>(kNumInvalidIds));
    invalid_map_entries(p).write(p.validation + static_cast<int>(kNumInvalidMapEntries));
  }
  return {};
}

}  // namespace tessera::cpu
