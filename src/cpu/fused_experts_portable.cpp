// The kernels of fused_experts in the vectors that compilers have for every processor.
#include "cpu/floating_point.hpp"
#include "cpu/fused_experts_activations.hpp"
#include "cpu/fused_experts_kernels.hpp"
#include "cpu/portable.hpp"

namespace tessera::cpu {
namespace {

struct Portable : PortableFloats {
  using Bits = std::uint32_t __attribute__((vector_size(16)));
  static constexpr int kRows = 4;
  static constexpr int kTokens = 2;

  static void keep(Floats&) {}
  static Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }

  template <typename Element>
  static void round(Element* to, Floats values) {
    for (int i = 0; i < kLanes; ++i) to[i] = round_to<Element>(values[i]);
  }

  /// Lane i of the result is the sum of the lanes of sums[i].
  static Floats add_lanes(const Floats* s) {
    const Floats low = __builtin_shufflevector(s[0], s[1], 0, 4, 2, 6) +
                       __builtin_shufflevector(s[0], s[1], 1, 5, 3, 7);
    const Floats high = __builtin_shufflevector(s[2], s[3], 0, 4, 2, 6) +
                        __builtin_shufflevector(s[2], s[3], 1, 5, 3, 7);
    return __builtin_shufflevector(low, high, 0, 1, 4, 5) +
           __builtin_shufflevector(low, high, 2, 3, 6, 7);
  }
};

constinit const ExpertKernels kFloat32 = kernels_of<Widened<Portable, float>>();
constinit const ExpertKernels kBfloat16 = kernels_of<Widened<Portable, Bfloat16>>();
constinit const ExpertKernels kFloat16 = kernels_of<Widened<Portable, Float16>>();
constinit const ExpertKernels kFp8Float32 = fp8_kernels_of<Portable, float>();
constinit const ExpertKernels kFp8Bfloat16 = fp8_kernels_of<Portable, Bfloat16>();
constinit const ExpertKernels kFp8Float16 = fp8_kernels_of<Portable, Float16>();

}  // namespace

constinit const ExpertKernelSet kPortableExpertKernels{&kFloat32,    &kBfloat16,    &kFloat16,
                                                       &kFp8Float32, &kFp8Bfloat16, &kFp8Float16};

}  // namespace tessera::cpu
