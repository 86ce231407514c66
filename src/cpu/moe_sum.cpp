// moe_sum: every sum stays in a register or in the L1 cache while its slots are added, so that each
// element of the input is read once, in k streams.
#include "cpu/moe_sum.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/moe_sum_columns.hpp"
#include "cpu/processor.hpp"
#include "cpu/thread_pool.hpp"

namespace tessera::cpu {
namespace {

using core::MoeSumProblem;

// Fewest elements of the input per thread that make waking it worthwhile: a sleeping thread starts
// some 50 us late on a virtual machine.
constexpr std::int64_t kElementsPerThread = std::int64_t{1} << 18;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together.
constexpr int kSlicesPerThread = 16;

template <typename T>
TokenSlots<T> token_slots(const MoeSumProblem& p, std::int64_t t) {
  return {static_cast<const T*>(p.input) + t * p.token_stride,
          p.slot_stride,
          p.token_stride,
          p.topk_weights == nullptr ? nullptr : p.topk_weights + t * p.top_k,
          p.top_k,
          static_cast<T*>(p.output) + t * p.output_stride};
}

template <typename T>
float weight_of(const TokenSlots<T>& token, std::int64_t slot) {
  return token.weights == nullptr ? 1.0F : token.weights[slot];
}

/// Sums columns [begin, end) of one token as the contract says.
struct Plainly {
  template <typename T>
  static void sum(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end) {
    for (std::int64_t column = begin; column < end; ++column) {
      float sum = kNothing;
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        sum = std::fma(weight_of(token, slot),
                       to_float(token.slots[slot * token.slot_stride + column]), sum);
      }
      token.output[column] = round_to<T>(sum);
    }
  }
};

/// Sums the same columns in loops that compilers vectorise.
struct Portably {
  template <typename T>
  static void sum(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end) {
    constexpr int kColumns = 64;
    for (; end - begin >= kColumns; begin += kColumns) {
      float sums[kColumns];
      std::fill_n(sums, kColumns, kNothing);
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        const float weight = weight_of(token, slot);
        const T* const row = token.slots + slot * token.slot_stride + begin;
        for (int i = 0; i < kColumns; ++i) sums[i] = std::fma(weight, to_float(row[i]), sums[i]);
      }
      for (int i = 0; i < kColumns; ++i) token.output[begin + i] = round_to<T>(sums[i]);
    }
    Plainly::sum(token, begin, end);
  }
};

/// Sums them with AVX2, unless they are fewer than a vector has.
struct WithAvx2 {
  template <typename T>
  static void sum(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end) {
    Plainly::sum(token, sum_vectors_avx2(token, begin, end), end);
  }
};

/// Sums them with AVX-512, and what is too short for that with AVX2.
struct WithAvx512 {
  template <typename T>
  static void sum(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end) {
    WithAvx2::sum(token, sum_vectors_avx512(token, begin, end), end);
  }
};

template <typename Columns, typename T>
void sum_elements(const MoeSumProblem& p, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t column = begin % p.hidden_size;
    const std::int64_t num_columns = std::min(p.hidden_size - column, end - begin);
    Columns::sum(token_slots<T>(p, begin / p.hidden_size), column, column + num_columns);
    begin += num_columns;
  }
}

/// Computes elements [begin, end) of the output, counted without the gaps between rows.
template <typename Columns>
void sum_slice(const MoeSumProblem& p, std::int64_t begin, std::int64_t end) {
  const DefaultFloatingPoint environment;
  if (p.dtype.code == kDLBfloat) {
    sum_elements<Columns, Bfloat16>(p, begin, end);
  } else if (p.dtype.bits == 16) {
    sum_elements<Columns, Float16>(p, begin, end);
  } else {
    sum_elements<Columns, float>(p, begin, end);
  }
}

Status sum_on_threads(const MoeSumProblem& p, const Context& context,
                      void (*sum_slice)(const MoeSumProblem&, std::int64_t, std::int64_t)) {
  const std::int64_t num_elements = p.num_tokens * p.hidden_size;
  // The product fits into 64 bits: it is the number of elements of an array in memory.
  const std::int64_t num_shares = num_elements * p.top_k / kElementsPerThread;
  if (num_shares < 2) {
    sum_slice(p, 0, num_elements);
    return {};
  }
  const int max_slices =
      static_cast<int>(std::min<std::int64_t>(num_shares, ThreadPool::kMaxSlices));
  ThreadPool::Lease lease(std::min(max_slices, core::max_threads(context)));
  const int num_slices = std::min(max_slices, lease.num_threads() * kSlicesPerThread);
  const std::int64_t length = num_elements / num_slices;
  lease.run(num_slices, [&](int slice) {
    const bool is_last = slice == num_slices - 1;
    sum_slice(p, slice * length, is_last ? num_elements : (slice + 1) * length);
  });
  return {};
}

}  // namespace

Status moe_sum_avx512(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads(problem, context, sum_slice<WithAvx512>);
}

Status moe_sum_avx512_refusal(const MoeSumProblem&, const Context&, bool) {
  static const bool runs_here = has_avx512();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported,
                            "needs a processor with AVX-512 (F, BW, DQ and VL)");
}

Status moe_sum_avx2(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads(problem, context, sum_slice<WithAvx2>);
}

Status moe_sum_avx2_refusal(const MoeSumProblem&, const Context&, bool) {
  static const bool runs_here = has_avx2();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported, "needs a processor with AVX2, FMA and F16C");
}

Status moe_sum_portable(const MoeSumProblem& problem, const Context& context) {
  return sum_on_threads(problem, context, sum_slice<Portably>);
}

Status moe_sum_reference(const MoeSumProblem& problem, const Context&) {
  sum_slice<Plainly>(problem, 0, problem.num_tokens * problem.hidden_size);
  return {};
}

}  // namespace tessera::cpu
