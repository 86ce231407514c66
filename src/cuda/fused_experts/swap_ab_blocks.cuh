// The shared memory of the kernel that exchanges operands, and the pairs of a call sorted by expert
// in it.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/parts/block_scan.cuh"
#include "cuda/parts/carve.cuh"
#include "cuda/parts/integers.cuh"
#include "cuda/parts/mbarrier.cuh"

namespace tessera::cuda {

/// The shared memory of a CTA.
template <std::size_t kTiling>
struct SwapAbShared {
  using Layout = SwapAbLayout<kTiling>;
  using Stage = PipelineCursor<Layout::kStages>;

  unsigned char* memory;  ///< a multiple of 1024

  __device__ __forceinline__ std::uint32_t weights(const Stage& at) const {
    return shared_address(memory) + at.stage * Layout::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t rows(const Stage& at) const {
    return weights(at) + kSwapAbWeightBytes;
  }
  __device__ __forceinline__ float* scales(const Stage& at, int step) const {
    return carve(memory, Layout::kScales) + at.stage * Layout::kStageScales +
           step * Layout::kStepScales;
  }
  __device__ __forceinline__ float* sums(int group) const {
    return carve(memory, Layout::kSums) + group * Layout::kPairsAtOnce * Layout::kSumStride;
  }
  __device__ __forceinline__ float* weights_of_pairs(int group) const {
    return carve(memory, Layout::kWeightsOfPairs) + group * Layout::kPairs;
  }
  __device__ __forceinline__ std::uint32_t full(const Stage& at) const { return barrier(at.stage); }
  __device__ __forceinline__ std::uint32_t empty(const Stage& at) const {
    return barrier(Layout::kStages + at.stage);
  }
  __device__ __forceinline__ std::uint32_t taken_full() const {
    return barrier(2 * Layout::kStages);
  }
  __device__ __forceinline__ std::uint32_t taken_empty() const {
    return barrier(2 * Layout::kStages + 1);
  }
  /// It is the turn of a group to multiply.
  __device__ __forceinline__ std::uint32_t turn(int group) const {
    return barrier(2 * Layout::kStages + 2 + group);
  }
  /// What the first thread of a group tells the others.
  __device__ __forceinline__ std::uint32_t& message(int group) const {
    return carve(memory, Layout::kMessages)[group];
  }
  /// The number of what was taken last.
  __device__ __forceinline__ volatile std::uint32_t& taken() const {
    return *carve(memory, Layout::kTaken);
  }
  __device__ __forceinline__ ScanStorage& scan() const {
    return *reinterpret_cast<ScanStorage*>(carve(memory, Layout::kWarpSums));
  }
  __device__ __forceinline__ std::uint32_t& num_blocks() const {
    return *carve(memory, Layout::kNumBlocks);
  }
  __device__ __forceinline__ std::int32_t* counts() const { return carve(memory, Layout::kCounts); }
  __device__ __forceinline__ SwapAbBlock* blocks() const { return carve(memory, Layout::kBlocks); }
  __device__ __forceinline__ std::uint16_t* pairs() const {
    return carve(memory, Layout::kListOfPairs);
  }

 private:
  __device__ __forceinline__ std::uint32_t barrier(std::uint32_t i) const {
    return shared_address(carve(memory, Layout::kBarriers) + i);
  }
};

/// Element `index` of an array of int32 or int64 that an earlier kernel may just have written: not
/// from L1, which a kernel that has not waited for that one could find as it was.
__device__ __forceinline__ std::int64_t fresh_integer_at(const void* array, bool is_64_bit,
                                                         std::int64_t index) {
  return is_64_bit ? __ldcg(static_cast<const long long*>(array) + index)
                   : __ldcg(static_cast<const int*>(array) + index);
}

/// The expert of a pair of the call, or -1: the pair does not count.
__device__ __forceinline__ std::int32_t expert_of(const SwapAbArgs& args, int pair) {
  const CombineArgs& ids = args.combine;
  if (pair >= args.gate_up.args.num_pairs) return -1;
  const std::int64_t id = fresh_integer_at(ids.topk_ids, ids.ids_are_64_bit, pair);
  return id >= 0 && id < ids.num_experts ? static_cast<std::int32_t>(id) : -1;
}

/// sort_pairs() for as many pairs as a block has room for, by one warp, with a pair in each lane.
template <std::size_t kTiling>
__device__ __forceinline__ void sort_few_pairs(const SwapAbArgs& args,
                                               SwapAbShared<kTiling> shared) {
  static_assert(kSwapAbPairs == 32);
  if (threadIdx.x < 32) {
    const auto lane = static_cast<int>(threadIdx.x);
    const std::int32_t expert = expert_of(args, lane);
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const bool is_first = expert >= 0 && __ffs(static_cast<int>(same)) - 1 == lane;
    const unsigned firsts = __ballot_sync(kAllLanes, is_first);
    const unsigned before = (1U << lane) - 1;
    // The pairs of the experts whose first pairs are before this one.
    const int size = is_first ? __popc(same) : 0;
    int first = inclusive_sum_of_warp(size) - size;
    if (is_first) {
      shared.blocks()[__popc(firsts & before)] = {static_cast<std::uint16_t>(expert),
                                                  static_cast<std::uint16_t>(first),
                                                  static_cast<std::uint16_t>(size), 0, 1};
    }
    first = __shfl_sync(kAllLanes, first, __ffs(static_cast<int>(same)) - 1);
    if (expert >= 0) {
      shared.pairs()[first + __popc(same & before)] = static_cast<std::uint16_t>(lane);
    }
    if (lane == 0) shared.num_blocks() = static_cast<std::uint32_t>(__popc(firsts));
  }
  __syncthreads();
}

/// Sorts the pairs that count by expert, and divides them into blocks, by the whole CTA. All CTAs
/// get the same blocks: the pairs of an expert that has several are in ascending order. Ends with a
/// barrier.
template <std::size_t kTiling>
__device__ __forceinline__ void sort_pairs(const SwapAbArgs& args, SwapAbShared<kTiling> shared) {
  if constexpr (!SwapAbLayout<kTiling>::kHasManyPairs) return sort_few_pairs(args, shared);
  if (args.gate_up.args.num_pairs <= kSwapAbPairs) return sort_few_pairs(args, shared);
  constexpr int kPairs = SwapAbLayout<kTiling>::kPairs;
  constexpr int kPairsPerThread = (kSwapAbMaxPairs + kSwapAbThreads - 1) / kSwapAbThreads;
  constexpr int kExpertsPerThread = (kSwapAbMaxExperts + kSwapAbThreads - 1) / kSwapAbThreads;
  const int thread = static_cast<int>(threadIdx.x);
  std::int32_t* const counts = shared.counts();
  for (int i = thread; i < kSwapAbMaxExperts; i += kSwapAbThreads) counts[i] = 0;
  __syncthreads();

  std::int32_t experts[kPairsPerThread];  // -1: none
  std::int32_t places[kPairsPerThread];   // among the pairs of the expert
#pragma unroll
  for (int i = 0; i < kPairsPerThread; ++i) {
    const int pair = thread + i * kSwapAbThreads;
    experts[i] = expert_of(args, pair);
  }
#pragma unroll
  for (int i = 0; i < kPairsPerThread; ++i) {
    if (experts[i] >= 0) places[i] = atomicAdd(&counts[experts[i]], 1);
  }
  __syncthreads();

  // Sums of pairs in the lower half, and of blocks in the upper one.
  std::int32_t own[kExpertsPerThread];
  std::int32_t sum = 0;
  bool has_many = false;
#pragma unroll
  for (int i = 0; i < kExpertsPerThread; ++i) {
    const int expert = thread * kExpertsPerThread + i;
    own[i] = expert < kSwapAbMaxExperts ? counts[expert] : 0;
    has_many |= own[i] > kPairs;
    sum += own[i] + ((own[i] + kPairs - 1) / kPairs << 16);
  }
  std::int32_t total = 0;
  std::int32_t before = exclusive_sum<kSwapAbThreads / 32>(sum, shared.scan(), &total);
  if (thread == 0) shared.num_blocks() = static_cast<std::uint32_t>(total >> 16);
#pragma unroll
  for (int i = 0; i < kExpertsPerThread; ++i) {
    const int expert = thread * kExpertsPerThread + i;
    if (own[i] == 0) continue;
    const int first = before & 0xFFFF;
    counts[expert] = first | own[i] << 16;
    const int count = (own[i] + kPairs - 1) / kPairs;
    for (int number = 0; number < count; ++number) {
      const int done = number * kPairs;
      shared.blocks()[(before >> 16) + number] = {
          static_cast<std::uint16_t>(expert), static_cast<std::uint16_t>(first + done),
          static_cast<std::uint16_t>(min(own[i] - done, kPairs)), static_cast<std::uint8_t>(number),
          static_cast<std::uint8_t>(count)};
    }
    before += own[i] + (count << 16);
  }
  __syncthreads();

  std::uint16_t* const pairs = shared.pairs();
#pragma unroll
  for (int i = 0; i < kPairsPerThread; ++i) {
    if (experts[i] < 0) continue;
    const int pair = thread + i * kSwapAbThreads;
    pairs[(counts[experts[i]] & 0xFFFF) + places[i]] = static_cast<std::uint16_t>(pair);
  }
  // Most calls end here: each expert has a block of its own, whose pairs may be in any order.
  if (__syncthreads_or(has_many ? 1 : 0) == 0) return;
#pragma unroll
  for (int i = 0; i < kPairsPerThread; ++i) {
    if (experts[i] < 0) continue;
    const int pair = thread + i * kSwapAbThreads;
    const int first = counts[experts[i]] & 0xFFFF;
    const int size = counts[experts[i]] >> 16;
    places[i] = first;
    for (int j = 0; j < size; ++j) places[i] += pairs[first + j] < pair ? 1 : 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPairsPerThread; ++i) {
    if (experts[i] < 0) continue;
    pairs[places[i]] = static_cast<std::uint16_t>(thread + i * kSwapAbThreads);
  }
  __syncthreads();
}

}  // namespace tessera::cuda
