// The reference: the contract's formulas in their order, without optimisations.
#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "core/align_block_size_problem.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/integer_ids.hpp"
#include "cpu/read_once.hpp"
#include "cpu/workspace.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;

constexpr std::int32_t kFiltered = -1;  // the group of the pairs with id -1

/// A pair that is in a group.
struct Pair {
  std::int32_t group;
  std::int32_t index;
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
/// returns their end. Reads every id only once, since it may change at any time.
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

/// Stable radix sort of pairs by their groups, which lie in [-1, num_experts): one pass per byte of
/// the group number, with memory that depends on the pairs alone. Returns `pairs` or `scratch`,
/// whichever holds the result.
Pair* sort_by_group(Pair* pairs, std::int64_t num_pairs, Pair* scratch, std::int32_t num_experts) {
  for (int shift = 0; shift < 32 && num_experts >> shift != 0; shift += 8) {
    const auto byte_of = [&](const Pair& pair) { return ((pair.group + 1) >> shift) & 0xff; };
    std::int64_t starts[257] = {};
    for (std::int64_t k = 0; k < num_pairs; ++k) ++starts[byte_of(pairs[k]) + 1];
    std::partial_sum(std::begin(starts), std::end(starts), std::begin(starts));
    for (std::int64_t k = 0; k < num_pairs; ++k) scratch[starts[byte_of(pairs[k])]++] = pairs[k];
    std::swap(pairs, scratch);
  }
  return pairs;
}

/// The sizes of the groups of experts.
struct Loads {
  std::int32_t num_pairs = 0;
  std::int32_t num_active = 0;
  std::int32_t largest = 0;
  std::int32_t num_filtered = 0;  // in the group of id -1

  void write_statistics(const AlignBlockSizeProblem& p, std::int32_t num_blocks) const {
    using enum AlignBlockSizeStatistic;
    const auto set = [&](AlignBlockSizeStatistic statistic, double value) {
      p.statistics[static_cast<int>(statistic)] = value;
    };
    set(kAssignedPairs, num_pairs);
    set(kActiveExperts, num_active);
    set(kUsedBlocks, num_blocks);
    set(kPaddingSlots, num_blocks * p.block_size - num_pairs - num_filtered);
    set(kMaxLoad, largest);
    set(kMeanLoad, static_cast<double>(num_pairs) / p.num_experts);
  }
};

}  // namespace

std::size_t reference_workspace_bytes(const AlignBlockSizeProblem& p, const Context&) {
  return Workspace::bytes_for<Pair>(2 * std::int64_t{p.num_ids});
}

Status align_block_size_reference(const AlignBlockSizeProblem& p, const Context& context) {
  const auto map = [&](std::int32_t expert) {
    return mapped_expert(p.expert_map, p.num_experts, expert);
  };
  Pair* const found = Workspace::array_in<Pair>(context.workspace);
  Pair* const scratch = found + p.num_ids;
  std::int64_t num_pairs = 0;
  Invalid invalid_ids;
  with_typed_ids(
      p, [&](const auto* ids) { num_pairs = find_pairs(p, ids, found, &invalid_ids) - found; });
  const Pair* pair = sort_by_group(found, num_pairs, scratch, p.num_experts);
  const Pair* const end = pair + num_pairs;

  std::fill_n(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);
  std::fill_n(p.expert_ids, p.expert_ids_length, p.map_tail ? map(p.tail_expert) : p.tail_expert);
  if (p.expert_counts != nullptr) std::fill_n(p.expert_counts, p.num_experts, 0);
  const bool is_mapped_afterwards = p.expert_map != nullptr && !p.drops_remote;
  Loads loads;
  std::int32_t block = 0;
  while (pair != end) {
    const std::int32_t group = pair->group;
    const std::int32_t start = block * p.block_size;
    std::int32_t count = 0;
    for (; pair != end && pair->group == group; ++pair) {
      if (count % p.block_size == 0)
        p.expert_ids[block++] = is_mapped_afterwards ? map(group) : group;
      p.sorted_token_ids[start + count++] = pair->index;
    }
    if (group == kFiltered) {
      loads.num_filtered = count;
      continue;
    }
    loads.num_pairs += count;
    loads.num_active += 1;
    loads.largest = std::max(loads.largest, count);
    if (p.expert_counts != nullptr) p.expert_counts[group] = count;
  }
  *p.num_tokens_post_pad = block * p.block_size;
  if (p.num_dropped != nullptr) *p.num_dropped = static_cast<std::int32_t>(invalid_ids.number);
  if (p.statistics != nullptr) loads.write_statistics(p, block);
  if (p.validation != nullptr) {
    using enum AlignBlockSizeValidation;
    invalid_ids.write(p.validation + static_cast<int>(kNumInvalidIds));
    invalid_map_entries(p).write(p.validation + static_cast<int>(kNumInvalidMapEntries));
  }
  return {};
}

}  // namespace tessera::cpu
