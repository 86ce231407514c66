#include "cuda/moe_sum/kernel.cuh"
#include "cuda/moe_unpermute/kernel.hpp"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {
namespace {

using Args = MoeUnpermuteKernelArgs;

constexpr int kWarpSlots = 32;  // one for each lane

/// Up to 32 slots of a token, of which each lane of the warp has one. Only those that count are
/// loaded.
struct Slots {
  const Args& args;
  const char* column;      ///< the word in row 0
  unsigned counting;       ///< those that count and are not skipped, one bit each
  std::uint32_t lane_row;  ///< the row of this lane's slot, and its weight
  float lane_weight;

  template <int kSlots, typename Word>
  __device__ __forceinline__ void load(Word (&words)[kSlots], float (&weights)[kSlots]) const {
    int lanes[kSlots];
    unsigned left = counting;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      lanes[i] = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      const std::uint32_t row = __shfl_sync(kAllLanes, lane_row, lanes[i]);
      words[i] = *reinterpret_cast<const Word*>(column + row * args.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i) weights[i] = __shfl_sync(kAllLanes, lane_weight, lanes[i]);
  }

  template <int kSlots>
  __device__ __forceinline__ void skip() {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) counting &= counting - 1;
  }
};

/// The launch bounds are those of moe_sum's kernel, for the same reason, or where few slots are
/// loaded at once let as many more threads load.
template <typename T, int kElements, int kAtOnce>
__global__ void __launch_bounds__(kMoeSumThreads, kAtOnce < kSlotsAtOnce ? 16 : 8)
    moe_unpermute_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  const std::uint32_t token = blockIdx.x / args.ctas_per_row;
  const std::uint32_t part = blockIdx.x % args.ctas_per_row;
  const std::uint32_t word = part * kMoeSumThreads + threadIdx.x;
  const std::uint32_t lane = threadIdx.x % 32;
  // Whole warps return, so that all lanes of the others read numbers of rows for each other. They
  // do so before the wait, so that the compiler computes the division before it, too. Every CTA has
  // warps that wait.
  if (word - lane >= args.words_per_row) return;
  // A lane without a word reads the last one.
  const std::int64_t offset = std::int64_t{min(word, args.words_per_row - 1)} *
                              static_cast<std::int64_t>(sizeof(Word<T, kElements>));
  const char* const column = static_cast<const char*>(args.rows) + offset;
  const std::int64_t first_pair = std::int64_t{token} * args.top_k;
  char* const output = static_cast<char*>(args.output) + token * args.output_stride + offset;
  pdl_wait();

  float sums[kElements];
  start_sums(sums);
  bool has_row = false;
  for (std::int32_t first = 0; first < args.top_k; first += kWarpSlots) {
    const std::int32_t slot = first + static_cast<std::int32_t>(lane);
    std::uint32_t row = ~0U;  // as a negative number is, which is too large
    float weight = 1;
    if (slot < args.top_k) {
      row = static_cast<std::uint32_t>(args.inverse[first_pair + slot]);
      if (args.topk_weights != nullptr) weight = args.topk_weights[first_pair + slot];
    }
    const unsigned counting = __ballot_sync(kAllLanes, row < args.num_rows);
    has_row |= counting != 0;
    add_all_slots<kAtOnce, T>(Slots{args, column, counting, row, weight}, __popc(counting), sums);
  }
  if (!has_row) {
#pragma unroll
    for (float& sum : sums) sum = 0;
  }
  if (word < args.words_per_row) write_sums<T>(sums, output);
}

template <typename T>
const void* kernel_of(MoeUnpermuteAccess access) {
  constexpr int kElements = kMoeSumVectorBytes / static_cast<int>(sizeof(T));
  switch (access) {
    case MoeUnpermuteAccess::kElements:
      return reinterpret_cast<const void*>(&moe_unpermute_kernel<T, 1, kSlotsAtOnce>);
    case MoeUnpermuteAccess::kVectors:
      return reinterpret_cast<const void*>(&moe_unpermute_kernel<T, kElements, kSlotsAtOnce>);
    default:
      return reinterpret_cast<const void*>(
          &moe_unpermute_kernel<T, kElements, kMoeUnpermuteFewSlots>);
  }
}

}  // namespace

const void* moe_unpermute_kernel(MoeSumType type, MoeUnpermuteAccess access) {
  switch (type) {
    case MoeSumType::kFloat16:
      return kernel_of<__half>(access);
    case MoeSumType::kBfloat16:
      return kernel_of<__nv_bfloat16>(access);
    default:
      return kernel_of<float>(access);
  }
}

}  // namespace tessera::cuda
