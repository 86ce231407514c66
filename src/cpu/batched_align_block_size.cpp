#include "cpu/batched_align_block_size.hpp"

#include <algorithm>
#include <numeric>

#include "cpu/read_once.hpp"

namespace tessera::cpu {

Status batched_align_block_size(const core::BatchedAlignBlockSizeProblem& p, const Context&) {
  std::int32_t* slot = p.sorted_token_ids;
  std::int32_t* block = p.expert_ids;
  for (std::int32_t batch = 0; batch < p.num_batches; ++batch) {
    const std::int32_t num_tokens = read_once(p.expert_num_tokens + batch);
    const std::int64_t count = std::clamp(num_tokens, 0, p.max_tokens_per_batch);
    const std::int64_t num_blocks = (count + p.block_size - 1) / p.block_size;
    std::iota(slot, slot + count, batch * p.max_tokens_per_batch);
    std::fill(slot + count, slot + num_blocks * p.block_size, p.filler);
    std::fill_n(block, num_blocks, batch);
    slot += num_blocks * p.block_size;
    block += num_blocks;
  }
  *p.num_tokens_post_pad = static_cast<std::int32_t>(slot - p.sorted_token_ids);
  std::fill(slot, p.sorted_token_ids + p.sorted_token_ids_length, p.filler);
  std::fill(block, p.expert_ids + p.expert_ids_length, p.tail_expert);
  return {};
}

}  // namespace tessera::cpu
