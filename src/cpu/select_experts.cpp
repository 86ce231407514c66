// select_experts: tokens are independent, so that threads take them in parts.
#include "cpu/select_experts.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cpu/portable.hpp"
#include "cpu/processor.hpp"
#include "cpu/read_once.hpp"
#include "cpu/select_experts_rows.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

// Fewest logits per thread that make waking it worthwhile.
constexpr std::int64_t kLogitsPerThread = std::int64_t{1} << 15;

// Tokens that a thread takes at once have about so many logits.
constexpr std::int64_t kLogitsAtOnce = std::int64_t{1} << 12;

struct Portable : PortableFloats {
  using Ints = std::int32_t __attribute__((vector_size(16)));
  static constexpr Ints kPlaces{0, 1, 2, 3};

  static Floats multiply_add(Floats a, Floats b, Floats c) {
    for (int i = 0; i < kLanes; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
  }
  static Floats square_root(Floats x) {
    for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
    return x;
  }

  static std::int32_t largest(Ints keys) {
    return std::max(std::max(keys[0], keys[1]), std::max(keys[2], keys[3]));
  }

  /// The first place of a key in a block that has it.
  static int find(std::int32_t key, const std::int32_t* block) {
    return static_cast<int>(std::find(block, block + kSums - 1, key) - block);
  }
};

int num_threads_for(const SelectExpertsProblem& p, const Context& context) {
  // The product fits into 64 bits: it is the number of elements of an array in memory.
  const std::int64_t shares = p.num_tokens * p.num_experts / kLogitsPerThread;
  const std::int64_t most = std::clamp<std::int64_t>(shares, 1, ThreadPool::kMaxSlices);
  return std::min(static_cast<int>(most), core::max_threads(context));
}

/// The tokens that count. The outputs of the others are written here.
std::int64_t valid_tokens(const SelectExpertsProblem& p) {
  if (p.num_valid_tokens == nullptr) return p.num_tokens;
  const std::int64_t valid =
      std::clamp<std::int64_t>(read_once(p.num_valid_tokens), 0, p.num_tokens);
  std::fill(p.topk_weights + valid * p.top_k, p.topk_weights + p.num_tokens * p.top_k, 0.0F);
  std::fill(p.topk_ids + valid * p.top_k, p.topk_ids + p.num_tokens * p.top_k, -1);
  return valid;
}

Status select_on_threads(const SelectExpertsProblem& p, const Context& context,
                         SelectRows select_rows) {
  const std::int64_t num_tokens = valid_tokens(p);
  const std::size_t row_bytes = select_experts_row_bytes(p);
  auto* const scratch = Workspace::array_in<std::byte>(context.workspace);
  const int most_threads = num_threads_for(p, context);
  if (most_threads == 1) {
    select_rows(p, 0, num_tokens, scratch);
    return {};
  }
  ThreadPool::Lease lease(most_threads);
  const std::int64_t at_once = std::max<std::int64_t>(1, kLogitsAtOnce / p.num_experts);
  std::atomic<std::int64_t> next = 0;
  lease.run(lease.num_threads(), [&](int slice) {
    std::byte* const own = scratch + static_cast<std::size_t>(slice) * row_bytes;
    for (std::int64_t begin = next.fetch_add(at_once); begin < num_tokens;
         begin = next.fetch_add(at_once)) {
      select_rows(p, begin, std::min(begin + at_once, num_tokens), own);
    }
  });
  return {};
}

using Functions = RouterFunctions<OneFloat>;

/// Follows the contract for one token. `v` and `choice` have room for E numbers, `is_gone` for E
/// flags.
template <typename T>
void select_literally(const SelectExpertsProblem& p, std::int64_t t, float* v, float* choice,
                      bool* is_gone) {
  const std::int64_t num_experts = p.num_experts;
  const T* const logits = static_cast<const T*>(p.router_logits) + t * p.logits_stride;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    v[e] = to_float(logits[e]);
    if (std::isnan(v[e])) v[e] = -kInfinity;
  }
  const float m = *std::max_element(v, v + num_experts);
  const auto num_infinite = static_cast<float>(std::count(v, v + num_experts, kInfinity));
  float sums[kSums] = {};
  for (std::int64_t e = 0; e < num_experts && std::isfinite(m); ++e) {
    sums[e % kSums] += Functions::exponential(v[e] - m);
  }
  const float sum_of_exponentials = sum_in_pairs(sums);
  const auto score = [&](std::int64_t e) {
    if (m == -kInfinity) return 0.0F;
    if (p.scoring == Scoring::kSigmoid) return Functions::sigmoid(v[e]);
    if (m == kInfinity) return v[e] == kInfinity ? 1 / num_infinite : 0.0F;
    if (p.scoring == Scoring::kSqrtSoftplus) return Functions::sqrt_softplus(v[e]);
    return Functions::exponential(v[e] - m) / sum_of_exponentials;
  };

  for (std::int64_t e = 0; e < num_experts; ++e) {
    choice[e] = v[e];
    if (p.correction_bias == nullptr || v[e] == -kInfinity) continue;
    choice[e] = score(e) + p.correction_bias[e];
    if (std::isnan(choice[e])) choice[e] = -kInfinity;
  }

  const std::int64_t size = p.group_size();
  const auto group_score = [&](std::int64_t group) {
    const float* const begin = choice + group * size;
    const float* const best = std::max_element(begin, begin + size);
    if (p.correction_bias == nullptr || size == 1) return *best;
    float second = -kInfinity;
    for (const float* other = begin; other < begin + size; ++other) {
      if (other != best) second = std::max(second, *other);
    }
    return std::isnan(*best + second) ? -kInfinity : *best + second;
  };
  for (std::int64_t group = 0; group < p.num_expert_group; ++group) {
    const float own = group_score(group);
    std::int64_t num_better = 0;
    for (std::int64_t other = 0; other < p.num_expert_group; ++other) {
      const float others = group_score(other);
      if (others > own || (others == own && other < group)) ++num_better;
    }
    std::fill_n(is_gone + group * size, size, num_better >= p.topk_group);
  }

  std::int32_t* const ids = p.topk_ids + t * p.top_k;
  float* const weights = p.topk_weights + t * p.top_k;
  float sum = 0;
  for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
    std::int64_t best = 0;
    while (is_gone[best]) ++best;
    for (std::int64_t e = best + 1; e < num_experts; ++e) {
      if (!is_gone[e] && choice[e] > choice[best]) best = e;
    }
    is_gone[best] = true;
    ids[slot] = static_cast<std::int32_t>(best);
    weights[slot] = score(best);
    sum += weights[slot];
  }
  for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
    if (p.renormalize && sum != 0) weights[slot] /= sum;
    weights[slot] *= p.routed_scaling_factor;
  }
}

}  // namespace

std::size_t select_experts_row_bytes(const SelectExpertsProblem& p) {
  constexpr std::int64_t kAlignment = 64;
  const std::int64_t padded = (p.num_experts + kSums - 1) / kSums * kSums;
  constexpr std::int64_t kBytesPerExpert = 4 * 4 + 8;  // what a Row has arrays for
  const std::int64_t bytes = padded * kBytesPerExpert;
  return static_cast<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
}

std::size_t select_experts_workspace_bytes(const SelectExpertsProblem& problem,
                                           const Context& context) {
  const auto num_rows = static_cast<std::size_t>(num_threads_for(problem, context));
  return Workspace::bytes_for<std::byte>(
      static_cast<std::int64_t>(num_rows * select_experts_row_bytes(problem)));
}

Status select_experts_avx2(const SelectExpertsProblem& problem, const Context& context) {
  return select_on_threads(problem, context, select_rows_avx2);
}

Status select_experts_avx2_refusal(const SelectExpertsProblem&, const Context&, bool) {
  static const bool runs_here = has_avx2();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported, "needs a processor with AVX2, FMA and F16C");
}

Status select_experts_portable(const SelectExpertsProblem& problem, const Context& context) {
  return select_on_threads(problem, context, select_rows<Portable>);
}

std::size_t select_experts_reference_workspace_bytes(const SelectExpertsProblem& problem,
                                                     const Context&) {
  return Workspace::bytes_for<float>(2 * problem.num_experts) +
         static_cast<std::size_t>(problem.num_experts);
}

Status select_experts_reference(const SelectExpertsProblem& p, const Context& context) {
  const DefaultFloatingPoint environment;
  auto* const v = Workspace::array_in<float>(context.workspace);
  float* const choice = v + p.num_experts;
  auto* const is_gone = reinterpret_cast<bool*>(choice + p.num_experts);
  const std::int64_t num_tokens = valid_tokens(p);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    if (p.dtype.code == kDLBfloat) {
      select_literally<Bfloat16>(p, t, v, choice, is_gone);
    } else if (p.dtype.bits == 16) {
      select_literally<Float16>(p, t, v, choice, is_gone);
    } else {
      select_literally<float>(p, t, v, choice, is_gone);
    }
  }
  return {};
}

}  // namespace tessera::cpu
