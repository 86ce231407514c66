// moe_sum: every sum stays in a register or in the L1 cache while its slots are added, so that each
// element of the input is read once, in k streams.
#include "cpu/moe_sum.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/processor.hpp"
#include "cpu/thread_pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#define TESSERA_AVX2 __attribute__((target("avx2,fma,f16c")))
#endif

namespace tessera::cpu {
namespace {

using core::MoeSumProblem;

/// The sum of no slots. Adding a product to it gives the rounded product, and keeps the sign of a
/// zero.
constexpr float kNothing = -0.0F;

// Fewest elements of the input per thread that make waking it worthwhile: a sleeping thread starts
// some 50 us late on a virtual machine.
constexpr std::int64_t kElementsPerThread = std::int64_t{1} << 18;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together.
constexpr int kSlicesPerThread = 16;

/// The inputs and the output of one token.
template <typename T>
struct Token {
  Token(const MoeSumProblem& p, std::int64_t t)
      : slots(static_cast<const T*>(p.input) + t * p.token_stride),
        slot_stride(p.slot_stride),
        weights(p.topk_weights == nullptr ? nullptr : p.topk_weights + t * p.top_k),
        top_k(p.top_k),
        output(static_cast<T*>(p.output) + t * p.output_stride) {}

  float weight(std::int64_t slot) const { return weights == nullptr ? 1.0F : weights[slot]; }
  const T* row(std::int64_t slot) const { return slots + slot * slot_stride; }

  const T* slots;
  std::int64_t slot_stride;
  const float* weights;
  std::int64_t top_k;
  T* output;
};

/// Sums columns [begin, end) of one token as the contract says.
struct Plainly {
  template <typename T>
  static void sum(const Token<T>& token, std::int64_t begin, std::int64_t end) {
    for (std::int64_t column = begin; column < end; ++column) {
      float sum = kNothing;
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        sum = std::fma(token.weight(slot), to_float(token.row(slot)[column]), sum);
      }
      token.output[column] = round_to<T>(sum);
    }
  }
};

/// Sums the same columns in loops that compilers vectorise.
struct Portably {
  template <typename T>
  static void sum(const Token<T>& token, std::int64_t begin, std::int64_t end) {
    constexpr int kColumns = 64;
    for (; end - begin >= kColumns; begin += kColumns) {
      float sums[kColumns];
      std::fill_n(sums, kColumns, kNothing);
      for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
        const float weight = token.weight(slot);
        const T* const row = token.row(slot) + begin;
        for (int i = 0; i < kColumns; ++i) sums[i] = std::fma(weight, to_float(row[i]), sums[i]);
      }
      for (int i = 0; i < kColumns; ++i) token.output[begin + i] = round_to<T>(sums[i]);
    }
    Plainly::sum(token, begin, end);
  }
};

#if defined(__x86_64__)

TESSERA_AVX2 inline __m256 load_8(const float* from) { return _mm256_loadu_ps(from); }

TESSERA_AVX2 inline __m256 load_8(const Bfloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

TESSERA_AVX2 inline __m256 load_8(const Float16* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

/// `bits`, with `nan_bits` in the lanes where `sums` has a NaN.
TESSERA_AVX2 inline __m256i with_nans(__m256i bits, __m256 sums, std::uint32_t nan_bits) {
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(sums, sums, _CMP_UNORD_Q));
  const __m256i nan = _mm256_set1_epi32(static_cast<std::int32_t>(nan_bits));
  return _mm256_blendv_epi8(bits, nan, is_nan);
}

TESSERA_AVX2 inline void round_and_store_8(float* to, __m256 sums) {
  const __m256i bits = with_nans(_mm256_castps_si256(sums), sums, kNanBits);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}

TESSERA_AVX2 inline void round_and_store_8(Bfloat16* to, __m256 sums) {
  const __m256i bits = _mm256_castps_si256(sums);
  const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), is_odd);
  const __m256i upper = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i rounded = with_nans(upper, sums, kNanBits16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(to),
      _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

TESSERA_AVX2 inline void round_and_store_8(Float16* to, __m256 sums) {
  // The conversion keeps the sign and the upper bits of a NaN.
  const __m256i bits = with_nans(_mm256_castps_si256(sums), sums, kNanBits);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(_mm256_castsi256_ps(bits), _MM_FROUND_TO_NEAREST_INT));
}

/// Sums kVectors vectors of columns, from `begin` on.
template <int kVectors, typename T>
TESSERA_AVX2 inline void sum_vectors(const Token<T>& token, std::int64_t begin) {
  __m256 sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = _mm256_set1_ps(kNothing);
  for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
    const __m256 weight = _mm256_set1_ps(token.weight(slot));
    const T* const row = token.row(slot) + begin;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = _mm256_fmadd_ps(weight, load_8(row + 8 * v), sums[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) round_and_store_8(token.output + begin + 8 * v, sums[v]);
}

struct WithAvx2 {
  template <typename T>
  TESSERA_AVX2 static void sum(const Token<T>& token, std::int64_t begin, std::int64_t end) {
    for (; end - begin >= 32; begin += 32) sum_vectors<4>(token, begin);
    for (; end - begin >= 8; begin += 8) sum_vectors<1>(token, begin);
    Plainly::sum(token, begin, end);
  }
};

#else

using WithAvx2 = Portably;

#endif

template <typename Columns, typename T>
void sum_elements(const MoeSumProblem& p, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t column = begin % p.hidden_size;
    const std::int64_t num_columns = std::min(p.hidden_size - column, end - begin);
    Columns::sum(Token<T>(p, begin / p.hidden_size), column, column + num_columns);
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
