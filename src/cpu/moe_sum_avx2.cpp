// The columns of moe_sum and moe_unpermute for AVX2, FMA and F16C.
#include "cpu/moe_sum_columns.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/avx2.hpp"
#include "cpu/moe_sum_vectors.hpp"

template <typename Token>
std::int64_t tessera::cpu::sum_vectors_avx2(const Token& token, std::int64_t begin,
                                            std::int64_t end) {
  return sum_columns<Avx2Floats>(token, begin, end);
}

#else

template <typename Token>
std::int64_t tessera::cpu::sum_vectors_avx2(const Token&, std::int64_t begin, std::int64_t) {
  return begin;
}

#endif

namespace tessera::cpu {

template std::int64_t sum_vectors_avx2(const TokenSlots<float>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenSlots<Bfloat16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenSlots<Float16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenRows<float>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenRows<Bfloat16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenRows<Float16>&, std::int64_t, std::int64_t);

}  // namespace tessera::cpu
