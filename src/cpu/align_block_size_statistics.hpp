// `statistics` and `validation` in cpu/counting_sort.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/align_block_size_problem.hpp"
#include "cpu/read_once.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cpu {

/// The loads of the experts in `statistics`.
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

/// Writes `validation`. `num_invalid_ids` was counted earlier: the scan for the first invalid id
/// stops at the end of the ids, even if all have become valid since.
template <typename Id, typename Buckets>
void write_validation(const core::AlignBlockSizeProblem& p, const Id* ids, Buckets bucket_of,
                      std::int32_t num_invalid_ids) {
  using enum AlignBlockSizeValidation;
  const auto set = [&](AlignBlockSizeValidation entry, std::int64_t value) {
    p.validation[static_cast<int>(entry)] = value;
  };
  set(kNumInvalidIds, num_invalid_ids);
  set(kFirstInvalidId, -1);
  set(kFirstInvalidIdValue, 0);
  const auto dropped = static_cast<std::uint32_t>(p.num_experts - Buckets::kFirstGroup);
  for (std::int64_t i = 0; num_invalid_ids != 0 && i < p.num_ids; ++i) {
    const Id id = read_once(ids + i);
    if (bucket_of(id) != dropped) continue;
    set(kFirstInvalidId, i);
    set(kFirstInvalidIdValue, static_cast<std::int64_t>(id));
    break;
  }

  std::int64_t num_invalid_entries = 0;
  set(kFirstInvalidMapEntry, -1);
  set(kFirstInvalidMapEntryValue, 0);
  for (std::int64_t expert = 0; p.expert_map != nullptr && expert < p.num_experts; ++expert) {
    const std::int32_t entry = read_once(p.expert_map + expert);
    if (entry >= -1 && entry < p.num_experts) continue;
    if (num_invalid_entries++ != 0) continue;
    set(kFirstInvalidMapEntry, expert);
    set(kFirstInvalidMapEntryValue, entry);
  }
  set(kNumInvalidMapEntries, num_invalid_entries);
}

}  // namespace tessera::cpu
