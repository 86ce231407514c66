// A CTA sums a part of one token's row, and each of its threads one word of that part. A thread
// loads up to kSlotsAtOnce slots at once.
#include "cuda/moe_sum/kernel.hpp"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

using Args = MoeSumKernelArgs;

constexpr int kSlotsAtOnce = 8;

/// Rounds to nearest, ties to even. The conversions to 16 bits give every NaN the bits that the
/// contract asks for. A float32 is not converted, so its NaNs are replaced.
__device__ __forceinline__ void round_to(float sum, float* to) {
  *to = isnan(sum) ? __int_as_float(0x7fffffff) : sum;
}
__device__ __forceinline__ void round_to(float sum, __half* to) { *to = __float2half_rn(sum); }
__device__ __forceinline__ void round_to(float sum, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(sum);
}

/// The elements of a row that a thread reads or writes at once.
template <typename T, int kElements>
struct alignas(kElements * sizeof(T)) Word {
  T elements[kElements];
};

/// Adds kSlots slots to the sums of one word, from `word` and `weight` on. All slots are loaded
/// before the first one is used.
template <int kSlots, typename T, int kElements>
__device__ __forceinline__ void add_slots(const Args& args, const char* word, const float* weight,
                                          float (&sums)[kElements]) {
  Word<T, kElements> words[kSlots];
  float weights[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    words[i] = *reinterpret_cast<const Word<T, kElements>*>(word + i * args.slot_stride);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) weights[i] = args.topk_weights == nullptr ? 1.0F : weight[i];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      sums[j] = __fmaf_rn(weights[i], to_float(words[i].elements[j]), sums[j]);
    }
  }
}

/// Adds up to kMost slots. Each number of slots has code of its own, so that all loads are in
/// flight at once.
template <int kMost, typename T, int kElements>
__device__ __forceinline__ void add_last_slots(const Args& args, int num_slots, const char* word,
                                               const float* weight, float (&sums)[kElements]) {
  if (num_slots == kMost) {
    add_slots<kMost, T>(args, word, weight, sums);
  } else if constexpr (kMost > 1) {
    add_last_slots<kMost - 1, T>(args, num_slots, word, weight, sums);
  }
}

/// The launch bounds allow 64 registers: enough for all loads of a round, and few enough for the
/// number of warps that hides their latency.
template <typename T, int kElements>
__global__ void __launch_bounds__(kMoeSumThreads, 8)
    moe_sum_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  const std::uint32_t token = blockIdx.x / args.ctas_per_row;
  const std::uint32_t part = blockIdx.x % args.ctas_per_row;
  const std::uint32_t column = part * kMoeSumThreads + threadIdx.x;
  const std::int64_t offset = std::int64_t{column} * sizeof(Word<T, kElements>);
  const char* word = static_cast<const char*>(args.input) + token * args.token_stride + offset;
  const float* weight = args.topk_weights + std::int64_t{token} * args.top_k;
  char* const output = static_cast<char*>(args.output) + token * args.output_stride + offset;
  // Returns before the wait, so that the compiler computes the division before it, too. Every CTA
  // has threads that wait.
  if (column >= args.words_per_row) return;
  pdl_wait();

  // The sum of no slots. Adding a product to it gives the rounded product, and keeps the sign of a
  // zero.
  constexpr float kNothing = -0.0F;
  float sums[kElements];
#pragma unroll
  for (float& sum : sums) sum = kNothing;
  int left = args.top_k;
  for (; left >= kSlotsAtOnce; left -= kSlotsAtOnce) {
    add_slots<kSlotsAtOnce, T>(args, word, weight, sums);
    word += kSlotsAtOnce * args.slot_stride;
    weight += kSlotsAtOnce;
  }
  add_last_slots<kSlotsAtOnce - 1, T>(args, left, word, weight, sums);

  Word<T, kElements> rounded;
#pragma unroll
  for (int j = 0; j < kElements; ++j) round_to(sums[j], &rounded.elements[j]);
  *reinterpret_cast<Word<T, kElements>*>(output) = rounded;
}

template <typename T>
const void* kernel_of(bool has_vectors) {
  constexpr int kElements = kMoeSumVectorBytes / static_cast<int>(sizeof(T));
  return has_vectors ? reinterpret_cast<const void*>(&moe_sum_kernel<T, kElements>)
                     : reinterpret_cast<const void*>(&moe_sum_kernel<T, 1>);
}

}  // namespace

const void* moe_sum_kernel(MoeSumType type, bool has_vectors) {
  switch (type) {
    case MoeSumType::kFloat16:
      return kernel_of<__half>(has_vectors);
    case MoeSumType::kBfloat16:
      return kernel_of<__nv_bfloat16>(has_vectors);
    default:
      return kernel_of<float>(has_vectors);
  }
}

}  // namespace tessera::cuda
