// The columns of moe_sum and moe_unpermute for AVX-512 (F, BW, DQ and VL).
#include "cpu/moe_sum_columns.hpp"

#if defined(__AVX512F__)

#include "cpu/avx512.hpp"
#include "cpu/moe_sum_vectors.hpp"

template <typename Token>
std::int64_t tessera::cpu::sum_vectors_avx512(const Token& token, std::int64_t begin,
                                              std::int64_t end) {
  return sum_columns<Avx512>(token, begin, end);
}

#else

template <typename Token>
std::int64_t tessera::cpu::sum_vectors_avx512(const Token&, std::int64_t begin, std::int64_t) {
  return begin;
}

#endif

namespace tessera::cpu {

template std::int64_t sum_vectors_avx512(const TokenSlots<float>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx512(const TokenSlots<Bfloat16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx512(const TokenSlots<Float16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx512(const TokenRows<float>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx512(const TokenRows<Bfloat16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx512(const TokenRows<Float16>&, std::int64_t, std::int64_t);

}  // namespace tessera::cpu
