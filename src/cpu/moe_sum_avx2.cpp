// The columns of moe_sum for AVX2, FMA and F16C.
#include "cpu/moe_sum_columns.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/avx2.hpp"

namespace tessera::cpu {
namespace {

/// Sums kVectors vectors of columns, from `begin` on.
template <int kVectors, typename T>
void sum_vectors(const TokenSlots<T>& token, std::int64_t begin) {
  __m256 sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = _mm256_set1_ps(kNothing);
  for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
    const __m256 weight = _mm256_set1_ps(token.weights == nullptr ? 1.0F : token.weights[slot]);
    const T* const row = token.slots + slot * token.slot_stride + begin;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = Avx2Floats::multiply_add(weight, Avx2Floats::widen(row + 8 * v), sums[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) Avx2Floats::round(token.output + begin + 8 * v, sums[v]);
}

}  // namespace

template <typename T>
std::int64_t sum_vectors_avx2(const TokenSlots<T>& token, std::int64_t begin, std::int64_t end) {
  if (end - begin < 8) return begin;
  for (; end - begin >= 32; begin += 32) sum_vectors<4>(token, begin);
  for (; end - begin >= 8; begin += 8) sum_vectors<1>(token, begin);
  // The last vector may have columns of the one before, which get the same sums again.
  if (begin < end) sum_vectors<1>(token, end - 8);
  return end;
}

}  // namespace tessera::cpu

#else

template <typename T>
std::int64_t tessera::cpu::sum_vectors_avx2(const TokenSlots<T>&, std::int64_t begin,
                                            std::int64_t) {
  return begin;
}

#endif

namespace tessera::cpu {

template std::int64_t sum_vectors_avx2(const TokenSlots<float>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenSlots<Bfloat16>&, std::int64_t, std::int64_t);
template std::int64_t sum_vectors_avx2(const TokenSlots<Float16>&, std::int64_t, std::int64_t);

}  // namespace tessera::cpu
