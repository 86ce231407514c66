#include "cpu/lora_align_block_size.hpp"

#include <algorithm>
#include <utility>

#include "cpu/integer_ids.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;
using core::LoraAlignBlockSizeProblem;

constexpr std::int32_t kNone = -1;

/// Marks the adapters whose rows hold pairs.
void find_active(const LoraAlignBlockSizeProblem& p, std::int32_t* is_active) {
  std::fill_n(is_active, p.max_loras, p.has_lora_ids ? 0 : 1);
  for (std::int64_t k = 0; k < p.num_lora_ids; ++k) {
    const std::int32_t adapter = p.lora_ids[k];
    if (adapter >= 0 && adapter < p.max_loras) is_active[adapter] = 1;
  }
  for (std::int32_t adapter = 0; adapter < p.max_loras && p.adapter_enabled != nullptr; ++adapter) {
    if (p.adapter_enabled[adapter] == 0) is_active[adapter] = 0;
  }
}

template <typename Id>
std::int32_t group_of(const AlignBlockSizeProblem& p, Id id) {
  if (std::cmp_less(id, 0) || std::cmp_greater_equal(id, p.num_experts)) return kNone;
  const auto expert = static_cast<std::int32_t>(id);
  return p.drops_remote ? core::mapped_expert(p.expert_map, p.num_experts, expert) : expert;
}

/// Calls visit(i, adapter, group) for every pair that is in a row.
template <typename Id, typename Visit>
void for_each_pair(const LoraAlignBlockSizeProblem& p, const Id* ids, const std::int32_t* is_active,
                   Visit visit) {
  const AlignBlockSizeProblem& pairs = p.first_row;
  std::int32_t i = 0;
  for (std::int32_t token = 0; i < pairs.num_ids; ++token) {
    const std::int32_t end = i + p.top_k;
    const std::int32_t adapter = p.token_lora_mapping[token];
    if (adapter < 0 || adapter >= p.max_loras || is_active[adapter] == 0) {
      i = end;
      continue;
    }
    for (; i < end; ++i) {
      const std::int32_t group = group_of(pairs, ids[i]);
      if (group != kNone) visit(i, adapter, group);
    }
  }
}

/// Writes a row but for its indices, and replaces the groups' counts by the slots they start at.
void lay_out(const LoraAlignBlockSizeProblem& p, std::int32_t adapter, std::int32_t* counts) {
  const AlignBlockSizeProblem& row = p.first_row;
  std::fill_n(row.sorted_token_ids + adapter * row.sorted_token_ids_length,
              row.sorted_token_ids_length, row.num_ids);
  std::int32_t* const expert_ids = row.expert_ids + adapter * row.expert_ids_length;
  std::int32_t block = 0;
  for (std::int32_t group = 0; group < row.num_experts; ++group) {
    const std::int32_t count = counts[group];
    counts[group] = block * row.block_size;
    if (count == 0) continue;
    const std::int32_t end = block + (count - 1) / row.block_size + 1;
    std::fill(expert_ids + block, expert_ids + end, group);
    block = end;
  }
  std::fill(expert_ids + block, expert_ids + row.expert_ids_length, row.tail_expert);
  row.num_tokens_post_pad[adapter] = block * row.block_size;
}

}  // namespace

std::size_t lora_workspace_bytes(const LoraAlignBlockSizeShape& shape) {
  // For each adapter whether it is active, and a counter an expert.
  return Workspace::bytes_for(shape.max_loras * (1 + shape.num_experts));
}

Status lora_align_block_size(const LoraAlignBlockSizeProblem& p, const Context& context) {
  const AlignBlockSizeProblem& row = p.first_row;
  const std::int64_t num_experts = row.num_experts;
  std::int32_t* const is_active = Workspace::ints_in(context.workspace);
  std::int32_t* const tables = is_active + p.max_loras;
  find_active(p, is_active);
  std::fill_n(tables, p.max_loras * num_experts, 0);
  with_typed_ids(row, [&](const auto* ids) {
    for_each_pair(p, ids, is_active, [&](std::int32_t, std::int32_t adapter, std::int32_t group) {
      ++tables[adapter * num_experts + group];
    });
    for (std::int32_t adapter = 0; adapter < p.max_loras; ++adapter) {
      lay_out(p, adapter, tables + adapter * num_experts);
    }
    for_each_pair(p, ids, is_active, [&](std::int32_t i, std::int32_t adapter, std::int32_t group) {
      const std::int32_t slot = tables[adapter * num_experts + group]++;
      row.sorted_token_ids[adapter * row.sorted_token_ids_length + slot] = i;
    });
  });
  return {};
}

}  // namespace tessera::cpu
