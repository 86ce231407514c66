// The reference: the contract's formulas in their order, with nothing done to be fast.
#include <algorithm>
#include <utility>

#include "core/align_block_size_implementation.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/integer_ids.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {

std::size_t reference_workspace_bytes(const AlignBlockSizeShape& shape, const Context&) {
  return Workspace::bytes_for(2 * shape.num_experts);
}

Status align_block_size_reference(const core::AlignBlockSizeProblem& p, const Context& context) {
  with_typed_ids(p, [&](const auto* ids) {
    const auto is_valid = [&](std::int64_t i) {
      return std::cmp_greater_equal(ids[i], 0) && std::cmp_less(ids[i], p.num_experts);
    };
    const auto group_of = [&](std::int64_t i) {
      if (!is_valid(i)) return -1;
      const auto expert = static_cast<std::int32_t>(ids[i]);
      return p.drops_remote ? core::mapped_expert(p.expert_map, p.num_experts, expert) : expert;
    };
    std::int32_t* const count = Workspace::ints_in(context.workspace);
    std::int32_t* const next = count + p.num_experts;

    std::fill_n(count, p.num_experts, 0);
    std::int32_t num_dropped = 0;
    for (std::int64_t i = 0; i < p.num_ids; ++i) {
      if (group_of(i) >= 0) ++count[group_of(i)];
      if (!is_valid(i)) ++num_dropped;
    }

    std::fill_n(p.sorted_token_ids, p.sorted_token_ids_length, p.num_ids);
    std::fill_n(p.expert_ids, p.expert_ids_length, p.tail_expert);
    std::int32_t block = 0;
    for (std::int32_t group = 0; group < p.num_experts; ++group) {
      const bool is_mapped_afterwards = p.expert_map != nullptr && !p.drops_remote;
      next[group] = block * p.block_size;
      for (std::int64_t placed = 0; placed < count[group]; placed += p.block_size) {
        p.expert_ids[block++] =
            is_mapped_afterwards ? core::mapped_expert(p.expert_map, p.num_experts, group) : group;
      }
    }
    *p.num_tokens_post_pad = block * p.block_size;

    for (std::int32_t i = 0; i < p.num_ids; ++i) {
      if (group_of(i) >= 0) p.sorted_token_ids[next[group_of(i)]++] = i;
    }
    if (p.expert_counts != nullptr) std::copy_n(count, p.num_experts, p.expert_counts);
    if (p.num_dropped != nullptr) *p.num_dropped = num_dropped;
  });
  return {};
}

}  // namespace tessera::cpu
