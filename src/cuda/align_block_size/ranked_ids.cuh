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
  /// Whether a bucket and a rank share a register: that spares registers, and takes instructions.
  static constexpr bool kPacks = kMaxRounds > 4;

 public:
  __device__ __forceinline__ RankedIds(std::int32_t cta_first, int size, int rounds)
      : cta_first_(cta_first),
        size_(size),
        rounds_(rounds),
        num_rows_((size + 32 * rounds - 1) / (32 * rounds)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        first_(warp_ * 32 * rounds + lane_) {}

  __device__ __forceinline__ std::int32_t cta_first() const { return cta_first_; }
  __device__ __forceinline__ int size() const { return size_; }

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
#pragma unroll
    for (int round = 0; round < kMaxRounds; ++round) {
      if (round >= rounds_ || warp_ >= num_rows_) break;
      const std::uint32_t bucket = first_ + round * 32 < size_
                                       ? bucket_of<kWidth>(args, ids_[round])
                                       : unplaced_bucket(args);
      const std::uint32_t rank =
          rank_in_warp(counts + warp_ * row_length, masks + warp_ * row_length, bucket, lane_);
      if constexpr (kPacks) {
        buckets_[round] = bucket << 16 | rank;
      } else {
        buckets_[round] = bucket;
        ranks_[round] = rank;
      }
    }
  }

  /// Calls visit(bucket, rank, i) for each id of this thread that is in a group; `i` counts from
  /// the CTA's first id.
  template <typename Visit>
  __device__ __forceinline__ void for_each_in_group(std::uint32_t num_groups, Visit visit) const {
#pragma unroll
    for (int round = 0; round < kMaxRounds; ++round) {
      if (round >= rounds_ || warp_ >= num_rows_) break;
      const std::uint32_t bucket = kPacks ? buckets_[round] >> 16 : buckets_[round];
      if (bucket >= num_groups) continue;
      const std::uint32_t rank = kPacks ? buckets_[round] & 0xffff : ranks_[round];
      visit(bucket, rank, first_ + round * 32);
    }
  }

 private:
  std::int32_t cta_first_;
  int size_;
  int rounds_;
  int num_rows_;
  int lane_;
  int warp_;
  int first_;  // this thread's first id, counted from the CTA's first
  RawId<kWidth> ids_[kMaxRounds];
  std::uint32_t buckets_[kMaxRounds];  // with `kPacks`: bucket << 16 | rank
  std::uint32_t ranks_[kMaxRounds];    // with `kPacks`: not used
};

}  // namespace tessera::cuda
