// One CTA selects for a few tokens, a warp for each, and then places their pairs. A pair finds its
// place by comparing its expert with those of all pairs, which takes less time for so few than to
// count the pairs of each expert.
#include <cstdint>

#include "cuda/align_block_size/outputs.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/scores.cuh"
#include "cuda/select_experts/token.cuh"

namespace tessera::cuda {
namespace {

using Args = SelectAndAlignKernelArgs;
using Pairs = SelectAndAlignPairs;

constexpr int kMaxPairs = kSelectAndAlignMaxPairs;
constexpr int kThreadsPerPair = kSelectAndAlignThreadsPerPair;
constexpr std::uint32_t kNoBucket = ~0U;  // after all others

/// Selects for the token of this warp, and notes the buckets of its pairs.
template <int kPerLane, Scoring kScoring, bool kIsPlain>
__device__ __forceinline__ void select(const Args& args, unsigned char* shared, Pairs& pairs) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp >= args.selection.num_tokens) return;
  const WarpMemory memory{args.selection.layout, shared + warp * args.selection.layout.bytes()};
  const bool is_padding =
      args.selection.num_valid_tokens != nullptr && warp >= *args.selection.num_valid_tokens;
  if (is_padding) {
    write_padding(args.selection, warp);
  } else {
    Selection<InRegisters<kPerLane>, kScoring, kIsPlain>(args.selection, memory).run(warp);
  }
  const std::int32_t top_k = args.selection.top_k;
  for (int slot = lane(); slot < top_k; slot += kWarp) {
    const std::int32_t id = is_padding ? -1 : memory.slots()[slot].expert;
    pairs.buckets[warp * top_k + slot] =
        bucket_of<IdWidth::k32>(args.blocks, static_cast<std::uint32_t>(id));
  }
}

/// Where a pair goes.
struct Place {
  std::int32_t rank = 0;   // among the pairs of its bucket
  std::int32_t count = 0;  // pairs of its bucket
  std::int32_t first_block = 0;
  std::int32_t total_blocks = 0;  // of all buckets
};

/// Adds up what the threads of a pair have found.
__device__ __forceinline__ std::int32_t sum_of_pair(std::int32_t part) {
#pragma unroll
  for (int apart = 1; apart < kThreadsPerPair; apart *= 2) {
    part += __shfl_xor_sync(kAllLanes, part, apart);
  }
  return part;
}

/// Calls visit(i) for each four pairs, i to i + 3, of this thread's share.
template <typename Visit>
__device__ __forceinline__ void for_share(std::int32_t num_pairs, int part, const Visit& visit) {
  constexpr int kStep = 4 * kThreadsPerPair;
#pragma unroll
  for (int first = 0; first < kMaxPairs; first += kStep) {
    if (first >= num_pairs) break;
    visit(first + 4 * part);
  }
}

__device__ __forceinline__ void place(const AlignBlockSizePlainArgs& args, Pairs& pairs) {
  const auto pair = static_cast<std::int32_t>(threadIdx.x) / kThreadsPerPair;
  const auto part = static_cast<std::int32_t>(threadIdx.x) % kThreadsPerPair;
  const std::int32_t num_pairs = args.base.num_ids;
  const std::uint32_t own = pairs.buckets[pair];

  Place place;
  for_share(num_pairs, part, [&](int first) {
    const auto four = *reinterpret_cast<const uint4*>(pairs.buckets + first);
    const std::uint32_t buckets[] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_peer = buckets[i] == own;
      place.count += is_peer ? 1 : 0;
      place.rank += is_peer && first + i < pair ? 1 : 0;
    }
  });
  place.count = sum_of_pair(place.count);
  place.rank = sum_of_pair(place.rank);
  const bool is_placed = own < num_groups_of(args);
  const bool leads_group = is_placed && place.rank == 0;
  const std::int32_t num_blocks = leads_group ? blocks_of(args.base, place.count) : 0;
  if (part == 0) pairs.blocks[pair] = num_blocks;
  __syncthreads();

  for_share(num_pairs, part, [&](int first) {
    const auto four = *reinterpret_cast<const uint4*>(pairs.buckets + first);
    const auto blocks = *reinterpret_cast<const int4*>(pairs.blocks + first);
    place.first_block += (four.x < own ? blocks.x : 0) + (four.y < own ? blocks.y : 0) +
                         (four.z < own ? blocks.z : 0) + (four.w < own ? blocks.w : 0);
    place.total_blocks += blocks.x + blocks.y + (blocks.z + blocks.w);
  });
  place.first_block = sum_of_pair(place.first_block);
  place.total_blocks = sum_of_pair(place.total_blocks);
  if (is_placed && part == 0) {
    args.base.sorted_token_ids[place.first_block * args.base.block_size + place.rank] = pair;
  }
  if (leads_group) {
    const std::int32_t expert = shown_expert(args, own);
    for (std::int32_t block = part; block < num_blocks; block += kThreadsPerPair) {
      args.base.expert_ids[place.first_block + block] = expert;
    }
    if (part == 0) store_count(args, own, place.count);
  }
  if (threadIdx.x == 0) {
    *args.base.num_tokens_post_pad = place.total_blocks * args.base.block_size;
  }
}

template <int kPerLane, Scoring kScoring, bool kIsPlain>
__global__ void __launch_bounds__(kSelectAndAlignThreads, 1)
    select_and_align(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Pairs pairs;
  pdl_launch_dependents();
  for (int i = args.blocks.base.num_ids + threadIdx.x; i < kMaxPairs; i += kSelectAndAlignThreads) {
    pairs.buckets[i] = kNoBucket;
  }
  pdl_wait();
  fill_outputs(args.blocks, threadIdx.x, kSelectAndAlignThreads);
  select<kPerLane, kScoring, kIsPlain>(args, shared, pairs);
  __syncthreads();
  place(args.blocks, pairs);
}

template <int kPerLane, Scoring kScoring>
const void* kernel_of_scoring(bool is_plain) {
  return is_plain ? reinterpret_cast<const void*>(&select_and_align<kPerLane, kScoring, true>)
                  : reinterpret_cast<const void*>(&select_and_align<kPerLane, kScoring, false>);
}

template <int kPerLane>
const void* kernel_of_size(const SelectAndAlignInstance& instance) {
  switch (instance.scoring) {
    case Scoring::kSoftmax:
      return kernel_of_scoring<kPerLane, Scoring::kSoftmax>(instance.is_plain);
    case Scoring::kSigmoid:
      return kernel_of_scoring<kPerLane, Scoring::kSigmoid>(instance.is_plain);
    default:
      return kernel_of_scoring<kPerLane, Scoring::kSqrtSoftplus>(instance.is_plain);
  }
}

}  // namespace

const void* select_and_align_kernel(const SelectAndAlignInstance& instance) {
  switch (instance.size) {
    case 0:
      return kernel_of_size<4>(instance);
    case 1:
      return kernel_of_size<8>(instance);
    default:
      return kernel_of_size<16>(instance);
  }
}

}  // namespace tessera::cuda
