// How moe_sum and moe_unpermute run on threads. Every sum stays in a register or in the L1 cache
// while its slots are added, so that each element of the input is read once, in k streams.
//
// `Tokens` is one of these ops: its `Problem`, and at(problem, token), which describes a token to
// the code that sums its columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/dispatch.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/moe_sum_columns.hpp"
#include "cpu/processor.hpp"
#include "cpu/thread_pool.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

// Fewest elements of the input per thread that make waking it worthwhile: a sleeping thread starts
// some 50 us late on a virtual machine.
inline constexpr std::int64_t kElementsPerThread = std::int64_t{1} << 18;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together.
inline constexpr int kSlicesPerThread = 16;

/// Sums columns [begin, end) of one token as the contract says.
struct Plainly {
  template <typename Token>
  static void sum(const Token& token, std::int64_t begin, std::int64_t end) {
    for (std::int64_t column = begin; column < end; ++column) {
      float sum = kNothing;
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        const auto* const row = row_of(token, slot);
        if (!Token::kAllCount && row == nullptr) continue;
        sum = std::fma(weight_of(token, slot), to_float(row[column]), sum);
      }
      token.output[column] = round_to<typename Token::Element>(sum);
    }
  }
};

/// Sums the same columns in loops that compilers vectorise.
struct Portably {
  template <typename Token>
  static void sum(const Token& token, std::int64_t begin, std::int64_t end) {
    constexpr int kColumns = 64;
    for (; end - begin >= kColumns; begin += kColumns) {
      float sums[kColumns];
      std::fill_n(sums, kColumns, kNothing);
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        const auto* const row = row_of(token, slot);
        if (!Token::kAllCount && row == nullptr) continue;
        const float weight = weight_of(token, slot);
        for (int i = 0; i < kColumns; ++i) {
          sums[i] = std::fma(weight, to_float(row[begin + i]), sums[i]);
        }
      }
      for (int i = 0; i < kColumns; ++i) {
        token.output[begin + i] = round_to<typename Token::Element>(sums[i]);
      }
    }
    Plainly::sum(token, begin, end);
  }
};

/// Sums them with AVX2, unless they are fewer than a vector has.
struct WithAvx2 {
  template <typename Token>
  static void sum(const Token& token, std::int64_t begin, std::int64_t end) {
    Plainly::sum(token, sum_vectors_avx2(token, begin, end), end);
  }
};

/// Sums them with AVX-512, and what is too short for that with AVX2.
struct WithAvx512 {
  template <typename Token>
  static void sum(const Token& token, std::int64_t begin, std::int64_t end) {
    WithAvx2::sum(token, sum_vectors_avx512(token, begin, end), end);
  }
};

/// The sum of a token without a row is +0.
template <typename Token>
bool has_row(const Token& token) {
  if (Token::kAllCount) return true;
  for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
    if (row_of(token, slot) != nullptr) return true;
  }
  return false;
}

template <typename Columns, typename Tokens, typename T>
void sum_elements(const typename Tokens::Problem& p, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t column = begin % p.hidden_size;
    const std::int64_t num_columns = std::min(p.hidden_size - column, end - begin);
    const auto token = Tokens::template at<T>(p, begin / p.hidden_size);
    if (has_row(token)) {
      Columns::sum(token, column, column + num_columns);
    } else {
      std::fill_n(token.output + column, num_columns, T{});
    }
    begin += num_columns;
  }
}

/// Computes elements [begin, end) of the output, counted without the gaps between rows.
template <typename Columns, typename Tokens>
void sum_slice(const typename Tokens::Problem& p, std::int64_t begin, std::int64_t end) {
  const DefaultFloatingPoint environment;
  if (p.dtype.code == kDLBfloat) {
    sum_elements<Columns, Tokens, Bfloat16>(p, begin, end);
  } else if (p.dtype.bits == 16) {
    sum_elements<Columns, Tokens, Float16>(p, begin, end);
  } else {
    sum_elements<Columns, Tokens, float>(p, begin, end);
  }
}

template <typename Columns, typename Tokens>
Status sum_on_threads(const typename Tokens::Problem& p, const Context& context) {
  const std::int64_t num_elements = p.num_tokens * p.hidden_size;
  // Rows may be added many times, so that the product may need more than 64 bits.
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const std::int64_t num_shares =
      std::min(num_elements, kMost / p.top_k) * p.top_k / kElementsPerThread;
  if (num_shares < 2) {
    sum_slice<Columns, Tokens>(p, 0, num_elements);
    return {};
  }
  const int max_slices =
      static_cast<int>(std::min<std::int64_t>(num_shares, ThreadPool::kMaxSlices));
  ThreadPool::Lease lease(std::min(max_slices, core::max_threads(context)));
  const int num_slices = std::min(max_slices, lease.num_threads() * kSlicesPerThread);
  const std::int64_t length = num_elements / num_slices;
  lease.run(num_slices, [&](int slice) {
    const bool is_last = slice == num_slices - 1;
    sum_slice<Columns, Tokens>(p, slice * length, is_last ? num_elements : (slice + 1) * length);
  });
  return {};
}

/// Follows the contract literally, on the calling thread.
template <typename Tokens>
Status sum_on_caller(const typename Tokens::Problem& p) {
  sum_slice<Plainly, Tokens>(p, 0, p.num_tokens * p.hidden_size);
  return {};
}

inline Status require_avx512() {
  static const bool runs_here = has_avx512();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported,
                            "needs a processor with AVX-512 (F, BW, DQ and VL)");
}

inline Status require_avx2() {
  static const bool runs_here = has_avx2();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported, "needs a processor with AVX2, FMA and F16C");
}

}  // namespace tessera::cpu
