// Counts the pairs of every group of every row in tables of max_loras x E counters, or sorts the
// pairs if there are far more counters than pairs.
#include "cpu/lora_align_block_size.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

#include "cpu/integer_ids.hpp"
#include "cpu/read_once.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::AlignBlockSizeProblem;
using core::LoraAlignBlockSizeProblem;

constexpr std::int32_t kNone = -1;

// From this many counters per id on, sorting the pairs beats a walk over all counters.
constexpr std::int64_t kSparseCountersPerId = 64;

bool is_sparse(std::int64_t num_ids, std::int64_t max_loras, std::int64_t num_experts) {
  return max_loras * num_experts > kSparseCountersPerId * num_ids;
}

/// Marks the adapters whose rows hold pairs.
void find_active(const LoraAlignBlockSizeProblem& p, std::int32_t* is_active) {
  std::fill_n(is_active, p.max_loras, p.has_lora_ids ? 0 : 1);
  for (std::int64_t k = 0; k < p.num_lora_ids; ++k) {
    const std::int32_t adapter = read_once(p.lora_ids + k);
    if (adapter >= 0 && adapter < p.max_loras) is_active[adapter] = 1;
  }
  for (std::int32_t adapter = 0; adapter < p.max_loras && p.adapter_enabled != nullptr; ++adapter) {
    if (read_once(p.adapter_enabled + adapter) == 0) is_active[adapter] = 0;
  }
}

template <typename Id>
std::int32_t group_of(const AlignBlockSizeProblem& p, Id id) {
  if (std::cmp_less(id, 0) || std::cmp_greater_equal(id, p.num_experts)) return kNone;
  const auto expert = static_cast<std::int32_t>(id);
  return p.drops_remote ? mapped_expert(p.expert_map, p.num_experts, expert) : expert;
}

/// Calls visit(i, adapter, group) for every pair that is in a row.
template <typename Id, typename Visit>
void for_each_pair(const LoraAlignBlockSizeProblem& p, const Id* ids, const std::int32_t* is_active,
                   Visit visit) {
  const AlignBlockSizeProblem& pairs = p.first_row;
  std::int32_t i = 0;
  for (std::int32_t token = 0; i < pairs.num_ids; ++token) {
    const std::int32_t end = i + p.top_k;
    const std::int32_t adapter = read_once(p.token_lora_mapping + token);
    if (adapter < 0 || adapter >= p.max_loras || is_active[adapter] == 0) {
      i = end;
      continue;
    }
    for (; i < end; ++i) {
      const std::int32_t group = group_of(pairs, read_once(ids + i));
      if (group != kNone) visit(i, adapter, group);
    }
  }
}

/// Writes a row without its indices, and replaces the groups' counts by their first slots.
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

template <typename Id>
void count_pairs(const LoraAlignBlockSizeProblem& p, const Id* ids, const std::int32_t* is_active,
                 std::int32_t* tables) {
  const AlignBlockSizeProblem& row = p.first_row;
  const std::int64_t num_experts = row.num_experts;
  std::fill_n(tables, p.max_loras * num_experts, 0);
  for_each_pair(p, ids, is_active, [&](std::int32_t, std::int32_t adapter, std::int32_t group) {
    ++tables[adapter * num_experts + group];
  });
  for (std::int32_t adapter = 0; adapter < p.max_loras; ++adapter) {
    lay_out(p, adapter, tables + adapter * num_experts);
  }
  // Pairs that have changed since they were counted may move a cursor beyond their row: nothing is
  // written there, and a cursor that overflows wraps.
  auto* const cursors = reinterpret_cast<std::uint32_t*>(tables);
  for_each_pair(p, ids, is_active, [&](std::int32_t i, std::int32_t adapter, std::int32_t group) {
    const std::int64_t slot = cursors[adapter * num_experts + group]++;
    if (slot < row.sorted_token_ids_length) [[likely]] {
      row.sorted_token_ids[adapter * row.sorted_token_ids_length + slot] = i;
    }
  });
}

/// A pair that is in a row.
struct Pair {
  std::int32_t adapter;
  std::int32_t group;
  std::int32_t index;
};

bool comes_first(const Pair& a, const Pair& b) {
  return std::tie(a.adapter, a.group, a.index) < std::tie(b.adapter, b.group, b.index);
}

template <typename Id>
void sort_pairs(const LoraAlignBlockSizeProblem& p, const Id* ids, const std::int32_t* is_active,
                Pair* pairs) {
  const AlignBlockSizeProblem& row = p.first_row;
  Pair* end = pairs;
  for_each_pair(p, ids, is_active, [&](std::int32_t i, std::int32_t adapter, std::int32_t group) {
    *end++ = {adapter, group, i};
  });
  std::sort(pairs, end, comes_first);

  std::fill_n(row.sorted_token_ids, p.max_loras * row.sorted_token_ids_length, row.num_ids);
  std::fill_n(row.expert_ids, p.max_loras * row.expert_ids_length, row.tail_expert);
  const Pair* pair = pairs;
  for (std::int32_t adapter = 0; adapter < p.max_loras; ++adapter) {
    std::int32_t* const sorted_token_ids =
        row.sorted_token_ids + adapter * row.sorted_token_ids_length;
    std::int32_t* const expert_ids = row.expert_ids + adapter * row.expert_ids_length;
    std::int32_t block = 0;
    while (pair != end && pair->adapter == adapter) {
      const std::int32_t group = pair->group;
      const std::int32_t start = block * row.block_size;
      for (std::int32_t k = 0; pair != end && pair->adapter == adapter && pair->group == group;
           ++k, ++pair) {
        if (k % row.block_size == 0) expert_ids[block++] = group;
        sorted_token_ids[start + k] = pair->index;
      }
    }
    row.num_tokens_post_pad[adapter] = block * row.block_size;
  }
}

}  // namespace

std::size_t lora_workspace_bytes(const LoraAlignBlockSizeProblem& p, const Context&) {
  // A flag per adapter that says whether it is active; then the counters, or the pairs.
  constexpr std::int64_t kIntsPerPair = sizeof(Pair) / sizeof(std::int32_t);
  const std::int64_t num_ids = p.first_row.num_ids;
  const std::int64_t num_experts = p.first_row.num_experts;
  const bool sorts = is_sparse(num_ids, p.max_loras, num_experts);
  return Workspace::bytes_for<std::int32_t>(
      p.max_loras + (sorts ? kIntsPerPair * num_ids : p.max_loras * num_experts));
}

Status lora_align_block_size(const LoraAlignBlockSizeProblem& p, const Context& context) {
  const AlignBlockSizeProblem& row = p.first_row;
  auto* const is_active = Workspace::array_in<std::int32_t>(context.workspace);
  std::int32_t* const rest = is_active + p.max_loras;
  find_active(p, is_active);
  with_typed_ids(row, [&](const auto* ids) {
    if (is_sparse(row.num_ids, p.max_loras, row.num_experts)) {
      sort_pairs(p, ids, is_active, reinterpret_cast<Pair*>(rest));
    } else {
      count_pairs(p, ids, is_active, rest);
    }
  });
  return {};
}

}  // namespace tessera::cpu
