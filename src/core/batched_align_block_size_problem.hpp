// What an implementation of batched_align_block_size takes.
#pragma once

#include <cstdint>

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps.
struct BatchedAlignBlockSizeProblem {
  const std::int32_t* expert_num_tokens;
  std::int32_t num_batches;
  std::int32_t max_tokens_per_batch;
  std::int32_t block_size;
  std::int32_t tail_expert;
  std::int32_t filler;
  std::int32_t capacity;

  std::int32_t* sorted_token_ids;
  std::int64_t sorted_token_ids_length;
  std::int32_t* expert_ids;
  std::int64_t expert_ids_length;
  std::int32_t* num_tokens_post_pad;
};

}  // namespace tessera::core
