// AVX-512 for the sources that are compiled for it.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header makes its undefined vectors from uninitialised variables (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstdint>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {
namespace {

struct Avx512 {
  using Floats = __m512;
  using Bits = std::uint32_t __attribute__((vector_size(64)));
  static constexpr std::int64_t kLanes = 16;
  // With a row's and three tokens' operands, 28 of 32 registers.
  static constexpr int kRows = 8;
  static constexpr int kTokens = 3;

  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
  /// Keeps a value in a register. The compiler would rather load it again for each product.
  template <typename Vector>
  static void keep(Vector& value) {
    asm("" : "+v"(value));
  }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

  static Floats widen(const float* from) { return load(from); }
  static Floats widen(const Bfloat16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static Floats widen(const Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  // As in avx2.hpp.
  static Fp8Parts<Avx512> widen_fp8(const Float8E4m3* from) {
    const __m512i pairs = _mm512_loadu_si512(from);
    const __m512i mask = _mm512_set1_epi16(static_cast<std::int16_t>(0xbf80));
    const __m512i odd = _mm512_and_si512(_mm512_srai_epi16(pairs, 1), mask);
    const __m512i even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(pairs, 8), 1), mask);
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(even)),
            _mm512_cvtph_ps(_mm512_castsi512_si256(odd)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1))};
  }
  using Fp8Bytes = std::uint8_t __attribute__((vector_size(64)));
  static constexpr std::int64_t kFp8Step = sizeof(Fp8Bytes);
  static constexpr float kFp8Factor = 256;

  static void round(float* to, Floats values) { store(to, with_nan(values)); }
  static void round(Bfloat16* to, Floats values) {
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), is_odd);
    const __m512i upper = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __m512i rounded = _mm512_mask_mov_epi32(
        upper, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), _mm512_set1_epi32(kNanBits16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
  }
  static void round(Float16* to, Floats values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(with_nan(values), _MM_FROUND_TO_NEAREST_INT));
  }

  /// Lane i of the result is the sum of the lanes of sums[i].
  static Floats add_lanes(const Floats* sums) {
    // Each step halves the vectors, and adds the halves of two. The order in which the vectors go
    // in makes their sums come out in order.
    Floats step[16];
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < 16; ++i) step[i] = sums[i % 4 * 4 + i / 4];
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < 8; ++i) {
      const Floats a = step[2 * i];
      const Floats b = step[2 * i + 1];
      step[i] = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    }
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < 4; ++i) {
      const Floats a = step[2 * i];
      const Floats b = step[2 * i + 1];
      step[i] = _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    }
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < 2; ++i) {
      const Floats a = step[2 * i];
      const Floats b = step[2 * i + 1];
      step[i] = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xee);
    }
    return _mm512_shuffle_ps(step[0], step[1], 0x88) + _mm512_shuffle_ps(step[0], step[1], 0xdd);
  }

 private:
  static Floats with_nan(Floats values) {
    const Floats nan = _mm512_castsi512_ps(_mm512_set1_epi32(kNanBits));
    return _mm512_mask_mov_ps(values, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), nan);
  }
};

}  // namespace
}  // namespace tessera::cpu
