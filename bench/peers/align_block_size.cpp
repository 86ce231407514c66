#include "peers/align_block_size.hpp"

#include <algorithm>

namespace tessera::bench {
namespace {

bool is_valid(std::int32_t id, std::int32_t num_experts) { return id >= 0 && id < num_experts; }

std::int32_t div_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

}  // namespace

void textbook(const PeerProblem& p, std::vector<std::int32_t>& workspace) {
  workspace.resize(p.num_experts);
  std::int32_t* const count = workspace.data();
  std::fill_n(count, p.num_experts, 0);
  for (std::int32_t i = 0; i < p.num_ids; ++i) {
    if (is_valid(p.topk_ids[i], p.num_experts)) ++count[p.topk_ids[i]];
  }
  std::int32_t start = 0;
  std::int32_t block = 0;
  for (std::int32_t expert = 0; expert < p.num_experts; ++expert) {
    const std::int32_t num_blocks = div_up(count[expert], p.block_size);
    const std::int32_t end = start + num_blocks * p.block_size;
    for (std::int32_t i = 0; i < num_blocks; ++i) p.expert_ids[block++] = expert;
    for (std::int32_t i = start + count[expert]; i < end; ++i) p.sorted_token_ids[i] = p.num_ids;
    count[expert] = start;
    start = end;
  }
  *p.num_tokens_post_pad = start;
  for (std::int32_t i = start; i < p.capacity; ++i) p.sorted_token_ids[i] = p.num_ids;
  for (std::int32_t i = block; i < p.num_blocks; ++i) p.expert_ids[i] = -1;
  for (std::int32_t i = 0; i < p.num_ids; ++i) {
    if (is_valid(p.topk_ids[i], p.num_experts)) p.sorted_token_ids[count[p.topk_ids[i]]++] = i;
  }
}

void thread_local_counts(const PeerProblem& p, int num_threads,
                         std::vector<std::int32_t>& workspace) {
  const std::int32_t num_experts = p.num_experts;
  // Row t + 1 holds thread t's counts, then, summed up, where thread t + 1 starts.
  workspace.assign((num_threads + 2) * num_experts + 1, 0);
  std::int32_t* const counts = workspace.data();
  std::int32_t* const starts = counts + (num_threads + 1) * num_experts;
  const auto share = [&](std::int64_t total, int t) {
    return static_cast<std::int32_t>(total * t / num_threads);
  };

#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int t = 0; t < num_threads; ++t) {
    const std::int32_t begin = share(p.capacity, t);
    std::fill_n(p.sorted_token_ids + begin, share(p.capacity, t + 1) - begin, p.num_ids);
    std::int32_t* const own = counts + (t + 1) * num_experts;
    for (std::int32_t i = share(p.num_ids, t); i < share(p.num_ids, t + 1); ++i) {
      if (is_valid(p.topk_ids[i], num_experts)) ++own[p.topk_ids[i]];
    }
  }

#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    for (int t = 0; t < num_threads; ++t) {
      counts[(t + 1) * num_experts + expert] += counts[t * num_experts + expert];
    }
  }

  std::int32_t block = 0;
  starts[0] = 0;
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    const std::int32_t num_blocks =
        div_up(counts[num_threads * num_experts + expert], p.block_size);
    starts[expert + 1] = starts[expert] + num_blocks * p.block_size;
    for (std::int32_t i = 0; i < num_blocks; ++i) p.expert_ids[block++] = expert;
  }
  *p.num_tokens_post_pad = starts[num_experts];
  std::fill(p.expert_ids + block, p.expert_ids + p.num_blocks, -1);

#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int t = 0; t < num_threads; ++t) {
    std::int32_t* const offsets = counts + t * num_experts;
    for (std::int32_t i = share(p.num_ids, t); i < share(p.num_ids, t + 1); ++i) {
      const std::int32_t expert = p.topk_ids[i];
      if (is_valid(expert, num_experts)) {
        p.sorted_token_ids[starts[expert] + offsets[expert]++] = i;
      }
    }
  }
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

void memory_floor(const PeerProblem& p) {
  // Not memcpy, which for some addresses and sizes is several times slower than a loop.
  const std::int32_t num_ids = p.num_ids;
  std::transform(p.topk_ids, p.topk_ids + num_ids, p.sorted_token_ids,
                 [num_ids](std::int32_t id) { return num_ids - id; });
  std::fill(p.sorted_token_ids + num_ids, p.sorted_token_ids + p.capacity, num_ids);
  std::fill_n(p.expert_ids, p.num_blocks, -1);
  *p.num_tokens_post_pad = p.capacity;
}

}  // namespace tessera::bench
