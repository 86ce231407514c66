#include "cuda/moe_sum/kernel.cuh"
#include "cuda/moe_sum/kernel.hpp"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

using Args = MoeSumKernelArgs;

/// The slots of a token, which lie at equal distances.
struct Slots {
  const Args& args;
  const char* word;
  const float* weight;

  template <int kSlots, typename Word>
  __device__ __forceinline__ void load(Word (&words)[kSlots], float (&weights)[kSlots]) const {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      words[i] = *reinterpret_cast<const Word*>(word + i * args.slot_stride);
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i) weights[i] = args.topk_weights == nullptr ? 1.0F : weight[i];
  }

  template <int kSlots>
  __device__ __forceinline__ void skip() {
    word += kSlots * args.slot_stride;
    weight += kSlots;
  }
};

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

  float sums[kElements];
  start_sums(sums);
  add_all_slots<kSlotsAtOnce, T>(Slots{args, word, weight}, args.top_k, sums);
  write_sums<T>(sums, output);
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
