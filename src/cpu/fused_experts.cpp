// fused_experts in two phases. The pairs of a chunk of tokens are sorted by expert. First, tasks of
// (some tokens of an expert, some rows of its w13) compute the activated rows of all pairs. Then
// each task computes some columns of the output: their rows of w2 of all experts, one expert after
// the other, and their sums over each token's slots. So each touched weight is read once per block
// of tokens, and threads share no sum.
#include "cpu/fused_experts.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

#include "core/dispatch.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/fused_experts_inputs.hpp"
#include "cpu/fused_experts_kernels.hpp"
#include "cpu/fused_experts_layout.hpp"
#include "cpu/fused_experts_packed_fp8.hpp"
#include "cpu/processor.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;

// Fewest products of a thread that make waking it worthwhile: a sleeping thread starts some 50 us
// late on a virtual machine.
constexpr std::int64_t kProductsPerThread = std::int64_t{1} << 19;

constexpr std::uint32_t kNoPair = 0xffffffff;

const std::byte* offset(const void* data, std::int64_t elements, std::int64_t element_bytes) {
  return data == nullptr ? nullptr : static_cast<const std::byte*>(data) + elements * element_bytes;
}

/// A call, and what its threads share.
class Call {
 public:
  Call(const FusedExpertsProblem& problem, const ExpertKernels& kernels, const Context& context)
      : p_(problem), kernels_(kernels), layout_(problem, kernels, context) {
    Parts parts{Workspace::array_in<std::byte>(context.workspace)};
    keys_ = parts.take<std::uint64_t>(layout_.keys_bytes);
    positions_ = parts.take<std::uint32_t>(layout_.positions_bytes);
    blocks_ = parts.take<TokenBlock>(layout_.blocks_bytes);
    activated_ = parts.take(layout_.activated_bytes);
    threads_ = parts.next;
  }

  void run(const Context& context) {
    ThreadPool::Lease lease(max_threads(context));
    for (first_token_ = 0; first_token_ < p_.num_tokens; first_token_ += layout_.chunk_tokens) {
      num_tokens_ = std::min(layout_.chunk_tokens, p_.num_tokens - first_token_);
      route();
      const std::int64_t num_panels = (p_.intermediate_size + kMaxActivated - 1) / kMaxActivated;
      run_tasks(lease, num_blocks_ * num_panels, [&](std::int64_t task, Scratch& scratch) {
        activate(blocks_[task / num_panels], task % num_panels * kMaxActivated, scratch);
      });
      if (p_.has_fp8_weights()) {
        run_tasks(lease, num_pairs_, [&](std::int64_t position, Scratch& scratch) {
          scratch.fp8.pack_activated(layout_.intermediate, kernels_,
                                     reinterpret_cast<float*>(activated(position)));
        });
      }
      const std::int64_t columns = columns_per_task(lease.num_threads());
      const std::int64_t num_tasks = (p_.hidden_size + columns - 1) / columns;
      run_tasks(lease, num_tasks, [&](std::int64_t task, Scratch& scratch) {
        combine(task * columns, std::min(columns, p_.hidden_size - task * columns), scratch);
      });
    }
  }

 private:
  /// One thread's part of the workspace.
  struct Scratch {
    Scratch(const FusedExpertsProblem& problem, const FusedExpertsLayout& layout, std::byte* memory)
        : fp8(problem, Parts{memory}) {
      Parts parts{memory + layout.fp8_bytes};
      tokens = parts.take(layout.tokens_bytes);
      weights = parts.take(layout.weights_bytes);
      partial_sums = parts.take(layout.partial_bytes);
      gate = parts.take<float>(layout.gate_up_bytes / 2);
      up = parts.take<float>(layout.gate_up_bytes / 2);
      down = parts.take<float>(layout.down_bytes);
    }
    PackedFp8 fp8;
    const float* row_scales[2 * kMaxActivated];  ///< kMaxColumns are no more
    std::byte* tokens;
    const TokenBlock* packed = nullptr;  ///< the block whose rows of x are in `tokens`
    std::byte* weights;
    std::byte* partial_sums;
    float* gate;
    float* up;
    float* down;
  };

  int max_threads(const Context& context) const {
    const double products = 1.0 * static_cast<double>(p_.num_tokens * p_.top_k) *
                            static_cast<double>(p_.num_gate_up_rows() + p_.intermediate_size) *
                            static_cast<double>(p_.hidden_size);
    const double num_shares = products / kProductsPerThread;
    const int limit = std::min(core::max_threads(context), ThreadPool::kMaxSlices);
    return num_shares < limit ? std::max(1, static_cast<int>(num_shares)) : limit;
  }

  std::int64_t columns_per_task(std::int64_t num_threads) const {
    const std::int64_t share = p_.hidden_size / (4 * num_threads) / kRowAlignment * kRowAlignment;
    return std::clamp(share, kRowAlignment, layout_.columns);
  }

  /// Calls function(task, scratch) for each task, on all threads of the lease.
  template <typename Function>
  void run_tasks(ThreadPool::Lease& lease, std::int64_t num_tasks, const Function& function) {
    std::atomic<std::int64_t> next_task{0};
    const auto work = [&](int thread) {
      const DefaultFloatingPoint environment;
      Scratch scratch(p_, layout_, threads_ + thread * layout_.thread_bytes);
      for (;;) {
        const std::int64_t task = next_task.fetch_add(1, std::memory_order_relaxed);
        if (task >= num_tasks) return;
        function(task, scratch);
      }
    };
    // A function object of one reference needs no memory of its own.
    lease.run(lease.num_threads(), [&work](int thread) { work(thread); });
  }

  /// Numbers the pairs that count, and cuts each expert's into blocks.
  void route() {
    std::uint64_t* end = keys_;
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      for (std::int64_t slot = 0; slot < p_.top_k; ++slot) {
        const std::int64_t expert = expert_of(p_, first_token_ + token, slot);
        const std::int64_t pair = token * p_.top_k + slot;
        positions_[pair] = kNoPair;
        if (expert >= 0) *end++ = static_cast<std::uint64_t>(expert << 32 | pair);
      }
    }
    std::sort(keys_, end);
    num_blocks_ = 0;
    num_pairs_ = end - keys_;
    for (std::int64_t first = 0, last = 0; first < num_pairs_; first = last) {
      const std::int64_t expert = expert_at(first);
      for (; last < num_pairs_ && expert_at(last) == expert; ++last) {
        positions_[pair_at(last)] = static_cast<std::uint32_t>(last);
      }
      // Blocks of about the same size.
      std::int64_t count = (last - first + layout_.block_tokens - 1) / layout_.block_tokens;
      for (std::int64_t pair = first; pair < last; --count) {
        const std::int64_t size = (last - pair + count - 1) / count;
        blocks_[num_blocks_++] = {expert, pair, size};
        pair += size;
      }
    }
  }

  std::int64_t expert_at(std::int64_t position) const {
    return static_cast<std::int64_t>(keys_[position] >> 32);
  }
  std::int64_t pair_at(std::int64_t position) const {
    return static_cast<std::int64_t>(keys_[position] & 0xffffffff);
  }

  /// Activated elements [first, first + kMaxActivated) of a block's pairs.
  void activate(const TokenBlock& block, std::int64_t first, Scratch& scratch) {
    const std::int64_t size = std::min(kMaxActivated, p_.intermediate_size - first);
    pack_tokens(block, scratch);
    ActivatedRow row{};
    row.activation = p_.activation;
    row.alpha = p_.swiglu_alpha;
    row.beta = p_.swiglu_beta;
    row.limit = p_.swiglu_limit;
    row.first = first;
    row.size = size;
    row.layout = layout_.intermediate;
    // Rows of w13 [first_row, first_row + num_rows) for the gate, and as many for the up
    // projection.
    const bool is_interleaved = p_.activation == Activation::kSwigluoai;
    const std::int64_t stride = is_interleaved ? 2 * kMaxActivated : kMaxActivated;
    const std::int64_t gate_row = is_interleaved ? 2 * first : first;
    const std::int64_t up_row = p_.intermediate_size + first;
    const bool has_up = has_gate(p_.activation) && !is_interleaved;
    const std::int64_t num_gate_rows = is_interleaved ? 2 * size : size;
    multiply_gate_up(block, gate_row, num_gate_rows, has_up ? up_row : gate_row + num_gate_rows,
                     stride, scratch.gate, scratch);
    row.gate_bias = bias_of(p_.w13, block.expert, gate_row);
    if (has_up) {
      multiply_gate_up(block, up_row, size, gate_row + size, stride, scratch.up, scratch);
      row.up_bias = bias_of(p_.w13, block.expert, up_row);
    }
    for (std::int64_t i = 0; i < block.num_pairs; ++i) {
      const std::int64_t pair = pair_at(block.first_pair + i);
      row.scale = p_.apply_router_weight_on_input ? weight_of(pair) : 1;
      row.gate = scratch.gate + i * stride;
      row.up = has_up ? scratch.up + i * stride : nullptr;
      row.packed = activated(block.first_pair + i);
      kernels_.activate(row);
    }
  }

  /// A thread mostly gets one panel after the other of the same block. With one token, all blocks
  /// have the same.
  void pack_tokens(const TokenBlock& block, Scratch& scratch) {
    if (scratch.packed != nullptr && has_same_tokens(*scratch.packed, block)) return;
    scratch.packed = &block;
    for (std::int64_t i = 0; i < block.num_pairs; ++i) {
      const std::int64_t token = first_token_ + pair_at(block.first_pair + i) / p_.top_k;
      std::byte* const packed = scratch.tokens + i * layout_.hidden.width * kernels_.packed_bytes;
      if (p_.has_fp8_weights()) {
        scratch.fp8.pack_token(token, layout_.hidden, kernels_, reinterpret_cast<float*>(packed));
      } else {
        kernels_.pack(offset(p_.x, token * p_.x_stride, kernels_.element_bytes), 0, p_.hidden_size,
                      layout_.hidden, packed);
      }
    }
  }

  bool has_same_tokens(const TokenBlock& a, const TokenBlock& b) const {
    if (a.num_pairs != b.num_pairs) return false;
    for (std::int64_t i = 0; i < a.num_pairs; ++i) {
      if (pair_at(a.first_pair + i) / p_.top_k != pair_at(b.first_pair + i) / p_.top_k) {
        return false;
      }
    }
    return true;
  }

  /// The rows from `next_row` on are read next.
  void multiply_gate_up(const TokenBlock& block, std::int64_t first_row, std::int64_t num_rows,
                        std::int64_t next_row, std::int64_t stride, float* sums, Scratch& scratch) {
    kernels_.multiply({rows_of(p_.w13, block.expert, first_row, num_rows, scratch.row_scales),
                       row_of(p_.w13, block.expert, next_row), layout_.hidden, scratch.tokens,
                       block.num_pairs, sums, stride, scratch.weights, scratch.partial_sums});
  }

  /// Columns [first, first + size) of the output.
  void combine(std::int64_t first, std::int64_t size, Scratch& scratch) {
    for (std::int64_t i = 0; i < num_blocks_; ++i) {
      const TokenBlock& block = blocks_[i];
      const bool is_last = i + 1 == num_blocks_;
      kernels_.multiply(
          {rows_of(p_.w2, block.expert, first, size, scratch.row_scales),
           row_of(p_.w2, blocks_[is_last ? 0 : i + 1].expert, is_last ? first + size : first),
           layout_.intermediate, activated(block.first_pair), block.num_pairs,
           scratch.down + block.first_pair * layout_.columns, layout_.columns, scratch.weights,
           scratch.partial_sums});
    }
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      alignas(64) float sums[FusedExpertsLayout::kMaxColumns] = {};
      for (std::int64_t slot = 0; slot < p_.top_k; ++slot) {
        const std::int64_t pair = token * p_.top_k + slot;
        const std::uint32_t position = positions_[pair];
        if (position == kNoPair) continue;
        kernels_.add_scaled(scratch.down + position * layout_.columns,
                            bias_of(p_.w2, expert_at(position), first),
                            p_.apply_router_weight_on_input ? 1 : weight_of(pair), size, sums);
      }
      const std::int64_t element = (first_token_ + token) * p_.output_stride + first;
      kernels_.round(sums, size,
                     static_cast<std::byte*>(p_.output) + element * kernels_.element_bytes);
    }
  }

  std::byte* activated(std::int64_t position) const {
    return activated_ + position * layout_.intermediate.width * kernels_.packed_bytes;
  }

  const std::byte* row_of(const ExpertWeights& weights, std::int64_t expert,
                          std::int64_t row) const {
    return offset(weights.data, expert * weights.expert_stride + row * weights.row_stride,
                  kernels_.weight_bytes);
  }

  /// Writes where each row's scales are.
  WeightRows rows_of(const ExpertWeights& weights, std::int64_t expert, std::int64_t first,
                     std::int64_t num_rows, const float** row_scales) const {
    for (std::int64_t row = 0; p_.has_fp8_weights() && row < num_rows; ++row) {
      row_scales[row] = weights.scales.of_row(expert, first + row);
    }
    return {row_of(weights, expert, first),
            weights.row_stride,
            weights.column_stride,
            num_rows,
            row_scales,
            weights.scales.num_columns > 1};
  }

  const void* bias_of(const ExpertWeights& weights, std::int64_t expert, std::int64_t row) const {
    return offset(weights.bias, expert * weights.bias_stride + row, kernels_.element_bytes);
  }

  float weight_of(std::int64_t pair) const {
    return router_weight(p_, first_token_ + pair / p_.top_k, pair % p_.top_k);
  }

  const FusedExpertsProblem& p_;
  const ExpertKernels& kernels_;
  const FusedExpertsLayout layout_;

  std::uint64_t* keys_;       ///< per pair that counts, sorted: its expert, its number in the chunk
  std::uint32_t* positions_;  ///< of each pair of the chunk in `keys_`, or kNoPair
  TokenBlock* blocks_;
  std::byte* activated_;
  std::byte* threads_;

  std::int64_t first_token_ = 0;
  std::int64_t num_tokens_ = 0;
  std::int64_t num_pairs_ = 0;
  std::int64_t num_blocks_ = 0;
};

const ExpertKernels* kernels_for(const ExpertKernelSet& set, const FusedExpertsProblem& p) {
  const bool is_fp8 = p.has_fp8_weights();
  if (p.dtype.code == kDLBfloat) return is_fp8 ? set.fp8_bfloat16 : set.bfloat16;
  if (p.dtype.bits == 16) return is_fp8 ? set.fp8_float16 : set.float16;
  return is_fp8 ? set.fp8_float32 : set.float32;
}

Status run(const ExpertKernelSet& set, const FusedExpertsProblem& p, const Context& context) {
  const DefaultFloatingPoint environment;
  if (p.num_tokens > 0) Call(p, *kernels_for(set, p), context).run(context);
  return {};
}

std::size_t workspace_bytes(const ExpertKernelSet& set, const FusedExpertsProblem& p,
                            const Context& context) {
  if (p.num_tokens == 0) return 0;
  const FusedExpertsLayout layout(p, *kernels_for(set, p), context);
  return Workspace::bytes_for<std::byte>(layout.total_bytes);
}

/// Why a set of kernels does not run the problem: `requirement` is what `runs_here` says whether
/// the processor has it.
Status refusal(const ExpertKernelSet& set, const FusedExpertsProblem& p, bool runs_here,
               const char* requirement) {
  if (!runs_here) {
    return Status(StatusCode::kUnsupported, std::string("needs a processor with ") + requirement);
  }
  if (set.bfloat16 == nullptr) {
    return Status(StatusCode::kUnsupported, "was not built with this compiler");
  }
  return kernels_for(set, p) != nullptr
             ? Status()
             : Status(StatusCode::kUnsupported, "multiplies bfloat16 numbers alone");
}

}  // namespace

Status fused_experts_avx512_bf16(const FusedExpertsProblem& problem, const Context& context) {
  return run(kAvx512Bf16ExpertKernels, problem, context);
}
std::size_t fused_experts_avx512_bf16_workspace_bytes(const FusedExpertsProblem& problem,
                                                      const Context& context) {
  return workspace_bytes(kAvx512Bf16ExpertKernels, problem, context);
}
Status fused_experts_avx512_bf16_refusal(const FusedExpertsProblem& problem, const Context&, bool) {
  static const bool runs_here = has_avx512_bf16();
  return refusal(kAvx512Bf16ExpertKernels, problem, runs_here, "AVX-512 and AVX512_BF16");
}

Status fused_experts_avx512(const FusedExpertsProblem& problem, const Context& context) {
  return run(kAvx512ExpertKernels, problem, context);
}
std::size_t fused_experts_avx512_workspace_bytes(const FusedExpertsProblem& problem,
                                                 const Context& context) {
  return workspace_bytes(kAvx512ExpertKernels, problem, context);
}
Status fused_experts_avx512_refusal(const FusedExpertsProblem& problem, const Context&, bool) {
  static const bool runs_here = has_avx512();
  return refusal(kAvx512ExpertKernels, problem, runs_here, "AVX-512 (F, BW, DQ and VL)");
}

Status fused_experts_avx2(const FusedExpertsProblem& problem, const Context& context) {
  return run(kAvx2ExpertKernels, problem, context);
}
std::size_t fused_experts_avx2_workspace_bytes(const FusedExpertsProblem& problem,
                                               const Context& context) {
  return workspace_bytes(kAvx2ExpertKernels, problem, context);
}
Status fused_experts_avx2_refusal(const FusedExpertsProblem& problem, const Context&, bool) {
  static const bool runs_here = has_avx2();
  return refusal(kAvx2ExpertKernels, problem, runs_here, "AVX2, FMA and F16C");
}

Status fused_experts_portable(const FusedExpertsProblem& problem, const Context& context) {
  return run(kPortableExpertKernels, problem, context);
}
std::size_t fused_experts_portable_workspace_bytes(const FusedExpertsProblem& problem,
                                                   const Context& context) {
  return workspace_bytes(kPortableExpertKernels, problem, context);
}

}  // namespace tessera::cpu
