// The kernels of fused_experts for AVX-512 (F, BW, DQ and VL).
#include "cpu/fused_experts_kernels.hpp"

#ifdef __AVX512F__

#include "cpu/avx512.hpp"
#include "cpu/fused_experts_activations.hpp"

namespace tessera::cpu {
namespace {

constinit const ExpertKernels kFloat32 = kernels_of<Widened<Avx512, float>>();
constinit const ExpertKernels kBfloat16 = kernels_of<Widened<Avx512, Bfloat16>>();
constinit const ExpertKernels kFloat16 = kernels_of<Widened<Avx512, Float16>>();
constinit const ExpertKernels kFp8Float32 = fp8_kernels_of<Avx512, float>();
constinit const ExpertKernels kFp8Bfloat16 = fp8_kernels_of<Avx512, Bfloat16>();
constinit const ExpertKernels kFp8Float16 = fp8_kernels_of<Avx512, Float16>();

}  // namespace

constinit const ExpertKernelSet kAvx512ExpertKernels{&kFloat32,    &kBfloat16,    &kFloat16,
                                                     &kFp8Float32, &kFp8Bfloat16, &kFp8Float16};

}  // namespace tessera::cpu

#else

constinit const tessera::cpu::ExpertKernelSet tessera::cpu::kAvx512ExpertKernels{};

#endif
