// What an implementation of lora_align_block_size takes.
#pragma once

#include <cstdint>

#include "core/align_block_size_problem.hpp"

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps.
struct LoraAlignBlockSizeProblem {
  /// All pairs, with the output row of adapter 0 and its lengths; the rows of the other adapters
  /// follow it. The outputs that only align_block_size has are null.
  AlignBlockSizeProblem first_row;
  std::int32_t top_k;
  std::int32_t max_loras;
  const std::int32_t* token_lora_mapping;
  const std::int32_t* adapter_enabled;  ///< null: all are enabled
  bool has_lora_ids;                    ///< if not, all adapters are in use
  const std::int32_t* lora_ids;
  std::int64_t num_lora_ids;
};

}  // namespace tessera::core
