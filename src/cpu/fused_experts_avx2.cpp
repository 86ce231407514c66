// The kernels of fused_experts for AVX2, FMA and F16C.
#include "cpu/fused_experts_kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/avx2.hpp"
#include "cpu/fused_experts_activations.hpp"

namespace tessera::cpu {
namespace {

struct Avx2 : Avx2Floats {
  using Bits = std::uint32_t __attribute__((vector_size(32)));
  // With a row's and three tokens' operands, all of 16 registers.
  static constexpr int kRows = 4;
  static constexpr int kTokens = 3;

  /// Keeps a value in a register. The compiler would rather load it again for each product.
  static void keep(Floats& value) { asm("" : "+x"(value)); }

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
};

constinit const ExpertKernels kFloat32 = kernels_of<Widened<Avx2, float>>();
constinit const ExpertKernels kBfloat16 = kernels_of<Widened<Avx2, Bfloat16>>();
constinit const ExpertKernels kFloat16 = kernels_of<Widened<Avx2, Float16>>();
constinit const ExpertKernels kFp8Float32 = fp8_kernels_of<Avx2, float>();
constinit const ExpertKernels kFp8Bfloat16 = fp8_kernels_of<Avx2, Bfloat16>();
constinit const ExpertKernels kFp8Float16 = fp8_kernels_of<Avx2, Float16>();

}  // namespace

constinit const ExpertKernelSet kAvx2ExpertKernels{&kFloat32,    &kBfloat16,    &kFloat16,
                                                   &kFp8Float32, &kFp8Bfloat16, &kFp8Float16};

}  // namespace tessera::cpu

#else

constinit const tessera::cpu::ExpertKernelSet tessera::cpu::kAvx2ExpertKernels{};

#endif
