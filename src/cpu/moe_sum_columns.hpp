// What the drivers of moe_sum and moe_unpermute ask of the code for one instruction set: the sum of
// the rows of one token.
#pragma once

#include <cstdint>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {

/// The sum of no slots. Adding a product to it gives the rounded product, and keeps the sign of a
/// zero.
inline constexpr float kNothing = -0.0F;

/// The inputs and the output of one token of moe_sum, whose slots lie at equal distances.
template <typename T>
struct TokenSlots {
  using Element = T;
  static constexpr bool kAllCount = true;  ///< every slot has a row

  const T* slots;
  std::int64_t slot_stride;
  std::int64_t token_stride;
  const float* weights;  ///< null: all are 1
  std::int64_t top_k;
  T* output;
};

/// The inputs and the output of one token of moe_unpermute, whose rows lie anywhere.
template <typename T>
struct TokenRows {
  using Element = T;
  static constexpr bool kAllCount = false;

  const T* rows;
  std::int64_t row_stride;
  std::int64_t num_rows;
  const std::int32_t* inverse;
  const std::int32_t* next_inverse;  ///< of the next token; of the same one, if it is the last
  const float* weights;              ///< null: all are 1
  std::int64_t top_k;
  T* output;
};

/// Sums columns [begin, end) with AVX2, unless they are fewer than a vector has; returns the first
/// that is left. Needs has_avx2().
template <typename Token>
std::int64_t sum_vectors_avx2(const Token& token, std::int64_t begin, std::int64_t end);

/// The same with AVX-512. Needs has_avx512().
template <typename Token>
std::int64_t sum_vectors_avx512(const Token& token, std::int64_t begin, std::int64_t end);

extern template std::int64_t sum_vectors_avx2(const TokenSlots<float>&, std::int64_t, std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenSlots<Bfloat16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenSlots<Float16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenRows<float>&, std::int64_t, std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenRows<Bfloat16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenRows<Float16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<float>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<Bfloat16>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<Float16>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenRows<float>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenRows<Bfloat16>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenRows<Float16>&, std::int64_t,
                                                std::int64_t);

// Of internal linkage, as sources for several instruction sets use them.
namespace {

/// The row that a slot adds to the sum; null if the slot does not count.
template <typename T>
const T* row_of(const TokenSlots<T>& token, std::int64_t slot) {
  return token.slots + slot * token.slot_stride;
}

/// The same row of the next token, to prefetch.
template <typename T>
const T* next_row_of(const TokenSlots<T>& token, std::int64_t slot) {
  return row_of(token, slot) + token.token_stride;
}

template <typename T>
const T* row_at(const TokenRows<T>& token, const std::int32_t* inverse) {
  // Another thread may change the number: it is loaded once, and a negative one is a large one.
  const auto row = static_cast<std::uint32_t>(__atomic_load_n(inverse, __ATOMIC_RELAXED));
  return row < token.num_rows ? token.rows + row * token.row_stride : nullptr;
}

template <typename T>
const T* row_of(const TokenRows<T>& token, std::int64_t slot) {
  return row_at(token, token.inverse + slot);
}

template <typename T>
const T* next_row_of(const TokenRows<T>& token, std::int64_t slot) {
  return row_at(token, token.next_inverse + slot);
}

template <typename Token>
float weight_of(const Token& token, std::int64_t slot) {
  return token.weights == nullptr ? 1.0F : token.weights[slot];
}

}  // namespace
}  // namespace tessera::cpu
