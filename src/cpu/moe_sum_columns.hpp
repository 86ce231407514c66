// What the driver of moe_sum asks of the code for one instruction set.
#pragma once

#include <cstdint>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {

/// The sum of no slots. Adding a product to it gives the rounded product, and keeps the sign of a
/// zero.
inline constexpr float kNothing = -0.0F;

/// The inputs and the output of one token.
template <typename T>
struct TokenSlots {
  const T* slots;
  std::int64_t slot_stride;
  std::int64_t token_stride;
  const float* weights;  ///< null: all are 1
  std::int64_t top_k;
  T* output;
};

/// Sums columns [begin, end) with AVX2, unless they are fewer than a vector has; returns the first
/// that is left. Needs has_avx2().
template <typename T>
std::int64_t sum_vectors_avx2(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end);

/// The same with AVX-512. Needs has_avx512().
template <typename T>
std::int64_t sum_vectors_avx512(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end);

extern template std::int64_t sum_vectors_avx2(const TokenSlots<float>&, std::int64_t, std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenSlots<Bfloat16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx2(const TokenSlots<Float16>&, std::int64_t,
                                              std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<float>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<Bfloat16>&, std::int64_t,
                                                std::int64_t);
extern template std::int64_t sum_vectors_avx512(const TokenSlots<Float16>&, std::int64_t,
                                                std::int64_t);

}  // namespace tessera::cpu
