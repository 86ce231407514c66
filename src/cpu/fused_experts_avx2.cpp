// The kernels of fused_experts for AVX2, FMA and F16C.
#include "cpu/fused_experts_kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "cpu/fused_experts_activations.hpp"

namespace tessera::cpu {
namespace {

struct Avx2 {
  using Floats = __m256;
  using Ints = std::int32_t __attribute__((vector_size(32)));
  static constexpr std::int64_t kLanes = 8;
  // With a row's and three tokens' operands, all of 16 registers.
  static constexpr int kRows = 4;
  static constexpr int kTokens = 3;

  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats values) { _mm256_storeu_ps(to, values); }
  /// Keeps a value in a register. The compiler would rather load it again for each product.
  static void keep(Floats& value) { asm("" : "+x"(value)); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

  static Floats widen(const float* from) { return load(from); }
  static Floats widen(const Bfloat16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static Floats widen(const Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

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
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(with_nan(values), _MM_FROUND_TO_NEAREST_INT));
  }

  /// Lane i of the result is the sum of the lanes of sums[i].
  static Floats add_lanes(const Floats* sums) {
    // The upper half of the result comes from the last four vectors.
    Floats half[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      half[i] = _mm256_permute2f128_ps(sums[i], sums[i + 4], 0x20) +
                _mm256_permute2f128_ps(sums[i], sums[i + 4], 0x31);
    }
    return _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  }

 private:
  static Floats with_nan(Floats values) {
    const Floats nan = _mm256_castsi256_ps(_mm256_set1_epi32(kNanBits));
    return _mm256_blendv_ps(values, nan, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  }
};

constinit const ExpertKernels kFloat32 = kernels_of<Widened<Avx2, float>>();
constinit const ExpertKernels kBfloat16 = kernels_of<Widened<Avx2, Bfloat16>>();
constinit const ExpertKernels kFloat16 = kernels_of<Widened<Avx2, Float16>>();

}  // namespace

constinit const ExpertKernelSet kAvx2ExpertKernels{&kFloat32, &kBfloat16, &kFloat16};

}  // namespace tessera::cpu

#else

constinit const tessera::cpu::ExpertKernelSet tessera::cpu::kAvx2ExpertKernels{};

#endif
