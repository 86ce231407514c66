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
  static Floats widen(const Float8E4m3* from) {
    const __m128i halves = fp8_as_halves(from);
    const __m128i magnitudes = _mm_and_si128(halves, _mm_set1_epi16(0x7fff));
    const __m128i is_nan = _mm_cmpeq_epi16(magnitudes, _mm_set1_epi16(0x3f80));
    const __m128i with_nan =
        _mm_or_si128(halves, _mm_and_si128(is_nan, _mm_set1_epi16(kNanBits16)));
    return _mm256_cvtph_ps(with_nan) * kFp8Factor;
  }
  /// What widen() gives, over kFp8Factor, of numbers that are no NaNs.
  static Floats widen_quickly(const Float8E4m3* from) {
    return _mm256_cvtph_ps(fp8_as_halves(from));
  }
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
  static __m128i fp8_as_halves(const Float8E4m3* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    // The sign is there twice where float16 has one bit more of exponent.
    const __m128i shifted = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
    return _mm_and_si128(shifted, _mm_set1_epi16(static_cast<std::int16_t>(0xbfff)));
  }

  static Floats with_nan(Floats values) {
    const Floats nan = _mm256_castsi256_ps(_mm256_set1_epi32(kNanBits));
    return _mm256_blendv_ps(values, nan, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  }
};

}  // namespace
}  // namespace tessera::cpu
