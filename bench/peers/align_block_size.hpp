// What align_block_size is measured against on the CPU. All take int32 ids without a map.
#pragma once

#include <cstdint>
#include <vector>

namespace tessera::bench {

struct PeerProblem {
  const std::int32_t* topk_ids;
  std::int32_t num_ids;
  std::int32_t block_size;
  std::int32_t num_experts;
  std::int32_t* sorted_token_ids;
  std::int32_t capacity;
  std::int32_t* expert_ids;
  std::int32_t num_blocks;
  std::int32_t* num_tokens_post_pad;
};

/// Count, padded prefix sum, scatter; every output slot is written once. One thread.
void textbook(const PeerProblem& problem, std::vector<std::int32_t>& workspace);

/// The algorithm of SGLang's CPU path (sgl-kernel/csrc/cpu/moe.cpp), restated: the output is filled
/// first, each thread counts its share of the ids, the counts are merged into offsets per thread,
/// each thread scatters its share. On `num_threads` OpenMP threads.
void thread_local_counts(const PeerProblem& problem, int num_threads,
                         std::vector<std::int32_t>& workspace);

/// Whether thread_local_counts runs on threads; built without OpenMP it is serial.
bool has_openmp();

/// No sorting at all: reads the ids and writes outputs of the same sizes.
void memory_floor(const PeerProblem& problem);

}  // namespace tessera::bench
