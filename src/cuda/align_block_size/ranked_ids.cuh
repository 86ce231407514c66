// The ids of one CTA in the registers of its threads.
#pragma once

#include <cstdint>

#include "cuda/align_block_size/buckets.cuh"
#include "cuda/parts/warp_rank.cuh"

namespace tessera::cuda {

/// The ids that a CTA places: topk_ids[cta_first, cta_first + size). Each warp takes 32 * rounds
/// consecutive ids, and ranks 32 of them per round. A bucket and a rank have 16 bits each.
template <IdWidth kWidth, int kMaxRounds>
class RankedIds {
 public:
  __device__ __forceinline__ RankedIds(std::int32_t cta_first, int size, int rounds)
      : cta_first_(cta_first),
        size_(size),
        rounds_(rounds),
        num_rows_((size + 32 * rounds - 1) / (32 * rounds)),
        first_(static_cast<int>(threadIdx.x) / 32 * 32 * rounds +
               static_cast<int>(threadIdx.x) % 32) {}

  __device__ __forceinline__ std::int32_t cta_first() const { return cta_first_; }

  /// The warps that have ids: rows of a table of their counts.
  __device__ __forceinline__ int num_rows() const { return num_rows_; }

  __device__ __forceinline__ void load(const AlignBlockSizeKernelArgs& args) {
#pragma unroll
    for (int round = 0; round < kMaxRounds; ++round) {
      const int i = first_ + round * 32;
      if (round < rounds_ && i < size_) ids_[round] = load_id<kWidth>(args, cta_first_ + i);
    }
  }

  /// Finds each id's bucket, and its rank among the warp's ids of that bucket. `counts` and
  /// `masks` have a row per warp, are zero on entry, and hold each warp's counts on exit.
  template <typename Args, typename Count>
  __device__ __forceinline__ void rank(const Args& args, Count* counts, std::uint32_t* masks,
                                       int row_length) {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int round = 0; round < kMaxRounds; ++round) {
      if (round >= rounds_ || warp >= num_rows_) break;
      const std::uint32_t bucket = first_ + round * 32 < size_
                                       ? bucket_of<kWidth>(args, ids_[round])
                                       : unplaced_bucket(args);
      ranked_[round] = bucket << 16 | rank_in_warp(counts + warp * row_length,
                                                   masks + warp * row_length, bucket, lane);
    }
  }

  /// Calls visit(bucket, rank, i) for each id of this thread that is in a group; `i` counts from
  /// the CTA's first id.
  template <typename Visit>
  __device__ __forceinline__ void for_each_in_group(std::uint32_t num_groups, Visit visit) const {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int round = 0; round < kMaxRounds; ++round) {
      if (round >= rounds_ || warp >= num_rows_) break;
      const std::uint32_t bucket = ranked_[round] >> 16;
      if (bucket < num_groups) visit(bucket, ranked_[round] & 0xffff, first_ + round * 32);
    }
  }

 private:
  std::int32_t cta_first_;
  int size_;
  int rounds_;
  int num_rows_;
  int first_;  // this thread's first id, counted from the CTA's first
  RawId<kWidth> ids_[kMaxRounds];
  std::uint32_t ranked_[kMaxRounds];  // bucket << 16 | rank
};

}  // namespace tessera::cuda
