// moe_permute: a row of x is read from memory once, and copied to all of its places while it is in
// the cache.
#include "cpu/moe_permute.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "core/dispatch.hpp"
#include "cpu/read_once.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::MoePermuteProblem;

// Fewest bytes of the outputs per thread that make waking it worthwhile: a sleeping thread starts
// some 50 us late on a virtual machine.
constexpr std::int64_t kBytesPerThread = std::int64_t{1} << 19;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together.
constexpr int kSlicesPerThread = 16;

constexpr std::int32_t kNone = -1;

/// The expert of a pair, or kNone if the pair does not count. Reads the id and its entry of the map
/// once, since they may change at any time.
std::int32_t expert_of(const MoePermuteProblem& p, std::int64_t pair) {
  const std::int64_t id = p.topk_ids_dtype.bits == 64
                              ? read_once(static_cast<const std::int64_t*>(p.topk_ids) + pair)
                              : read_once(static_cast<const std::int32_t*>(p.topk_ids) + pair);
  if (id < 0 || id >= p.num_global_experts) return kNone;
  const std::int64_t expert = p.has_map ? read_once(p.expert_map + id) : id;
  return expert >= 0 && expert < p.num_experts ? static_cast<std::int32_t>(expert) : kNone;
}

std::byte* row_at(const MoePermuteProblem& p, std::int64_t row) {
  return static_cast<std::byte*>(p.rows) + row * p.rows_stride * (p.dtype.bits / 8);
}

void copy_token(const MoePermuteProblem& p, std::int64_t token, std::int64_t row) {
  if (p.hidden_size == 0) return;
  const std::byte* const from =
      static_cast<const std::byte*>(p.x) + token * p.x_stride * (p.dtype.bits / 8);
  std::memcpy(row_at(p, row), from, static_cast<std::size_t>(p.row_bytes()));
}

void clear_rows(const MoePermuteProblem& p, std::int64_t begin, std::int64_t end) {
  if (p.hidden_size == 0) return;
  for (std::int64_t row = begin; row < end; ++row) {
    std::memset(row_at(p, row), 0, static_cast<std::size_t>(p.row_bytes()));
  }
}

/// The first multiple of the block size from `row` on.
std::int64_t round_up(const MoePermuteProblem& p, std::int64_t row) {
  return (row + p.block_size - 1) / p.block_size * p.block_size;
}

/// Writes `inverse`, and to expert_offsets[e] the end of the rows of expert e without padding.
void place_pairs(const MoePermuteProblem& p) {
  std::fill_n(p.expert_offsets, p.num_experts, 0);
  const std::int64_t num_pairs = p.num_pairs();
  for (std::int64_t pair = 0; pair < num_pairs; ++pair) {
    const std::int32_t expert = expert_of(p, pair);
    p.inverse[pair] = expert;  // kept until the rows are known
    if (expert != kNone) ++p.expert_offsets[expert];
  }
  std::int64_t start = 0;
  for (std::int64_t expert = 0; expert < p.num_experts; ++expert) {
    const std::int64_t end = round_up(p, start + p.expert_offsets[expert]);
    p.expert_offsets[expert] = static_cast<std::int32_t>(start);
    start = end;
  }
  for (std::int64_t pair = 0; pair < num_pairs; ++pair) {
    const std::int32_t expert = p.inverse[pair];
    if (expert != kNone) p.inverse[pair] = p.expert_offsets[expert]++;
  }
}

void copy_tokens(const MoePermuteProblem& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t token = begin; token < end; ++token) {
    for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
      const std::int32_t row = p.inverse[token * p.top_k + slot];
      if (row != kNone) copy_token(p, token, row);
    }
  }
}

/// Clears the padding of experts [begin, end), while expert_offsets has the ends without it.
void clear_padding(const MoePermuteProblem& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t expert = begin; expert < end; ++expert) {
    const std::int64_t row = p.expert_offsets[expert];
    clear_rows(p, row, round_up(p, row));
  }
}

/// Replaces the ends of the experts' rows without padding by their starts.
void finish_offsets(const MoePermuteProblem& p) {
  for (std::int64_t expert = p.num_experts; expert > 0; --expert) {
    p.expert_offsets[expert] = static_cast<std::int32_t>(round_up(p, p.expert_offsets[expert - 1]));
  }
  p.expert_offsets[0] = 0;
}

/// Copies and clears all rows. Each slice has some of the tokens, and some of the experts.
void write_rows(const MoePermuteProblem& p, const Context& context) {
  const auto write_slice = [&](std::int64_t slice, std::int64_t num_slices) {
    const auto share = [&](std::int64_t number, std::int64_t i) {
      return number / num_slices * i + number % num_slices * i / num_slices;
    };
    copy_tokens(p, share(p.num_tokens, slice), share(p.num_tokens, slice + 1));
    if (p.block_size == 1) return;
    clear_padding(p, share(p.num_experts, slice), share(p.num_experts, slice + 1));
  };
  const std::int64_t last = p.expert_offsets[p.num_experts - 1];
  const std::int64_t num_shares = round_up(p, last) * p.row_bytes() / kBytesPerThread;
  if (num_shares < 2) {
    write_slice(0, 1);
    return;
  }
  const int max_slices =
      static_cast<int>(std::min<std::int64_t>(num_shares, ThreadPool::kMaxSlices));
  ThreadPool::Lease lease(std::min(max_slices, core::max_threads(context)));
  const int num_slices = std::min(max_slices, lease.num_threads() * kSlicesPerThread);
  lease.run(num_slices, [&](int slice) { write_slice(slice, num_slices); });
}

/// A pair that counts.
struct Pair {
  std::int32_t expert;
  std::int32_t index;
};

bool comes_first(const Pair& a, const Pair& b) {
  return std::tie(a.expert, a.index) < std::tie(b.expert, b.index);
}

}  // namespace

Status moe_permute_by_tokens(const MoePermuteProblem& p, const Context& context) {
  place_pairs(p);
  write_rows(p, context);
  finish_offsets(p);
  return {};
}

std::size_t moe_permute_reference_workspace_bytes(const MoePermuteProblem& p, const Context&) {
  return Workspace::bytes_for<Pair>(p.num_pairs());
}

Status moe_permute_reference(const MoePermuteProblem& p, const Context& context) {
  Pair* const pairs = Workspace::array_in<Pair>(context.workspace);
  Pair* end = pairs;
  for (std::int32_t i = 0; i < p.num_pairs(); ++i) {
    const std::int32_t expert = expert_of(p, i);
    p.inverse[i] = kNone;
    if (expert != kNone) *end++ = {expert, i};
  }
  std::sort(pairs, end, comes_first);

  const Pair* pair = pairs;
  std::int32_t row = 0;
  for (std::int32_t expert = 0; expert < p.num_experts; ++expert) {
    p.expert_offsets[expert] = row;
    for (; pair != end && pair->expert == expert; ++pair) {
      copy_token(p, pair->index / p.top_k, row);
      p.inverse[pair->index] = row++;
    }
    const auto padded = static_cast<std::int32_t>(round_up(p, row));
    clear_rows(p, row, padded);
    row = padded;
  }
  p.expert_offsets[p.num_experts] = row;
  return {};
}

}  // namespace tessera::cpu
