// The kernels of fused_experts for AVX512_BF16, which multiplies bfloat16 numbers as they are.
#include "cpu/fused_experts_kernels.hpp"

#ifdef __AVX512BF16__

#include "cpu/avx512.hpp"
#include "cpu/fused_experts_activations.hpp"

namespace tessera::cpu {
namespace {

struct Bfloat16Pairs {
  using Isa = Avx512;
  using Element = Bfloat16;
  using Packed = Bfloat16;
  using Operand = __m512i;
  static constexpr std::int64_t kStep = 32;

  static Operand load(const Bfloat16* from) { return _mm512_loadu_si512(from); }
  static void store(Bfloat16* to, Operand values) { _mm512_storeu_si512(to, values); }
  static __m512 multiply_add(Operand a, Operand b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

constinit const ExpertKernels kBfloat16 = kernels_of<Bfloat16Pairs>();

}  // namespace

constinit const ExpertKernelSet kAvx512Bf16ExpertKernels{nullptr, &kBfloat16, nullptr,
                                                         nullptr, nullptr,    nullptr};

}  // namespace tessera::cpu

#else

constinit const tessera::cpu::ExpertKernelSet tessera::cpu::kAvx512Bf16ExpertKernels{};

#endif
