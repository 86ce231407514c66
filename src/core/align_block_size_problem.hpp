// What an implementation of align_block_size takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps.
struct AlignBlockSizeProblem {
  const void* topk_ids;
  DLDataType id_dtype;  ///< one of the eight integer types
  std::int32_t num_ids;
  std::int32_t block_size;
  std::int32_t num_experts;
  const std::int32_t* expert_map;  ///< null: none
  bool drops_remote;               ///< a map is given, and pairs of remote experts are left out
  std::int32_t tail_expert;
  bool map_tail;        ///< a map is given, and the tail shows its entry of `tail_expert`
  bool filtered_group;  ///< group -1 holds the pairs with id -1

  std::int32_t* sorted_token_ids;
  std::int64_t sorted_token_ids_length;
  std::int32_t* expert_ids;
  std::int64_t expert_ids_length;
  std::int32_t* num_tokens_post_pad;
  std::int32_t* expert_counts;  ///< null: not asked for
  std::int32_t* num_dropped;    ///< null: not asked for
  double* statistics;           ///< null: not asked for
  std::int64_t* validation;     ///< null: not asked for

  /// For other ops of CUDA, whose backend alone writes it: the slot of each id, -1 for ids that
  /// have none; null: not asked for.
  std::int32_t* slots_of_ids;
};

/// Groups that pairs can be in, G in the contract.
inline std::int64_t num_groups(const AlignBlockSizeProblem& problem) {
  return std::int64_t{problem.num_experts} + (problem.filtered_group ? 1 : 0);
}

}  // namespace tessera::core
