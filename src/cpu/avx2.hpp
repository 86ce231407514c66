// Vectors of floats for the sources that are compiled for AVX2, FMA and F16C. Nothing here has a
// name that the linker could share with sources for every processor.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {
namespace {

/// Eight floats, and their conversions from and to the data types of arrays.
struct Avx2Floats {
  using Floats = __m256;
  static constexpr std::int64_t kLanes = 8;

  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats values) { _mm256_storeu_ps(to, values); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

  static Floats widen(const float* from) { return load(from); }
  static Floats widen(const Bfloat16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static Floats widen(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  /// Widens kFp8Step elements that are numbers, over kFp8Factor.
  static Fp8Parts<Avx2Floats> widen_fp8(const Float8E4m3* from) {
    // As float16. The sign is there twice where that has one bit more of exponent.
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i mask = _mm256_set1_epi16(static_cast<std::int16_t>(0xbf80));
    const __m256i odd = _mm256_and_si256(_mm256_srai_epi16(pairs, 1), mask);
    const __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(pairs, 8), 1), mask);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(even)),
            _mm256_cvtph_ps(_mm256_castsi256_si128(odd)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1))};
  }
  using Fp8Bytes = std::uint8_t __attribute__((vector_size(32)));
  static constexpr std::int64_t kFp8Step = sizeof(Fp8Bytes);
  /// 2^8: the exponents of float16 have a bias of 15, those of float8_e4m3fn of 7.
  static constexpr float kFp8Factor = 256;

  static void round(float* to, Floats values) { store(to, with_nan(values)); }
  static void round(Bfloat16* to, Floats values) {
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), is_odd);
    const __m256i upper = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i rounded =
        _mm256_blendv_epi8(upper, _mm256_set1_epi32(kNanBits16),
                           _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q)));
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to),
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
  }
  static void round(Float16* to, Floats values) {
    // The conversion keeps the sign and the upper bits of a NaN.
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(with_nan(values), _MM_FROUND_TO_NEAREST_INT));
  }

 private:
  static Floats with_nan(Floats values) {
    const Floats nan = _mm256_castsi256_ps(_mm256_set1_epi32(kNanBits));
    return _mm256_blendv_ps(values, nan, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  }
};

}  // namespace
}  // namespace tessera::cpu
