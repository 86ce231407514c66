// What cpu/counting_sort writes to `statistics` and `validation`.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/align_block_size_implementation.hpp"

namespace tessera::cpu {

/// What `statistics` tells of the loads of the experts.
class Loads {
 public:
  void add(std::int32_t load) {
    num_pairs_ += load;
    num_active_ += load != 0 ? 1 : 0;
    largest_ = std::max(largest_, load);
  }

  void write_statistics(const core::AlignBlockSizeProblem& p, std::int32_t num_blocks,
                        std::int32_t num_filtered) const {
    using enum AlignBlockSizeStatistic;
    const auto set = [&](AlignBlockSizeStatistic statistic, double value) {
      p.statistics[static_cast<int>(statistic)] = value;
    };
    set(kAssignedPairs, num_pairs_);
    set(kActiveExperts, num_active_);
    set(kUsedBlocks, num_blocks);
    set(kPaddingSlots, num_blocks * p.block_size - num_pairs_ - num_filtered);
    set(kMaxLoad, largest_);
    set(kMeanLoad, static_cast<double>(num_pairs_) / p.num_experts);
  }

 private:
  std::int32_t num_pairs_ = 0;
  std::int32_t num_active_ = 0;
  std::int32_t largest_ = 0;
};

inline std::int64_t& num_invalid_ids(const core::AlignBlockSizeProblem& p) {
  return p.validation[static_cast<int>(AlignBlockSizeValidation::kNumInvalidIds)];
}

/// Completes `validation`, of which num_invalid_ids() is there.
template <typename Id, typename Buckets>
void find_invalid(const core::AlignBlockSizeProblem& p, const Id* ids, Buckets bucket_of) {
  using enum AlignBlockSizeValidation;
  const auto set = [&](AlignBlockSizeValidation entry, std::int64_t value) {
    p.validation[static_cast<int>(entry)] = value;
  };
  set(kFirstInvalidId, -1);
  set(kFirstInvalidIdValue, 0);
  if (num_invalid_ids(p) != 0) {
    const auto dropped = static_cast<std::uint32_t>(p.num_experts - Buckets::kFirstGroup);
    std::int64_t i = 0;
    while (bucket_of(ids[i]) != dropped) ++i;
    set(kFirstInvalidId, i);
    set(kFirstInvalidIdValue, static_cast<std::int64_t>(ids[i]));
  }

  const auto is_invalid = [&](std::int32_t entry) { return entry < -1 || entry >= p.num_experts; };
  const std::int32_t* const map_end = p.expert_map + (p.expert_map == nullptr ? 0 : p.num_experts);
  const std::int32_t* const first = std::find_if(p.expert_map, map_end, is_invalid);
  set(kNumInvalidMapEntries, std::count_if(first, map_end, is_invalid));
  set(kFirstInvalidMapEntry, first == map_end ? -1 : first - p.expert_map);
  set(kFirstInvalidMapEntryValue, first == map_end ? 0 : *first);
}

}  // namespace tessera::cpu
