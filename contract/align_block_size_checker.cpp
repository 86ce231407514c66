#include "align_block_size_checker.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <span>
#include <tuple>
#include <utility>

#include "arrays.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kFilteredGroup = -1;
constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

class Checker : private ViolationCollector {
 public:
  explicit Checker(const AlignBlockSizeArgs& args)
      : args_(args),
        num_ids_(args.topk_ids.num_elements),
        block_size_(args.block_size),
        num_experts_(args.num_experts),
        read_(id_reader(args.topk_ids.dtype)) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_sizes();
    if (none()) {
      count();
      check_num_tokens_post_pad();
      check_groups();
      check_experts();
      check_counts();
      check_statistics();
      check_validation();
    }
    return in_order(kAlignBlockSizeRules);
  }

 private:
  /// The slots of one group. Its blocks start where the group before it ends.
  struct Slots {
    std::int64_t group;
    std::int64_t begin;        // first slot
    std::int64_t members_end;  // first padding slot
    std::int64_t end;          // first slot of the next group
  };

  void check_inputs() {
    if (read_ == nullptr || !readable(args_.topk_ids) || num_ids_ > kMaxInt32) {
      invalid_input("topk_ids", "at most 2^31 - 1 contiguous integers", describe(args_.topk_ids));
    }
    if (block_size_ < 1 || block_size_ > kMaxInt32) {
      invalid_input("block_size", "a value in [1, 2^31 - 1]", std::to_string(block_size_));
    }
    if (num_experts_ < 1 || num_experts_ > kAlignBlockSizeMaxExperts) {
      invalid_input("num_experts", "a value in [1, 2^30]", std::to_string(num_experts_));
    }
    const TensorView& map = args_.expert_map;
    if (map.given() &&
        (!same(map.dtype, kInt32) || !readable(map) || map.num_elements != num_experts_)) {
      invalid_input("expert_map", "num_experts contiguous int32 values", describe(map));
    }
    if (none() && capacity() > kMaxInt32) {
      invalid_input("block_size", "a capacity of at most 2^31 - 1", std::to_string(capacity()));
    }
  }

  void check_sizes() {
    check_buffer("sorted_token_ids", args_.sorted_token_ids, capacity());
    check_buffer("expert_ids", args_.expert_ids, (capacity() + block_size_ - 1) / block_size_);
    check_array("num_tokens_post_pad", args_.num_tokens_post_pad, kInt32, 1);
    check_optional("expert_counts", args_.expert_counts, kInt32, num_experts_);
    check_optional("num_dropped", args_.num_dropped, kInt32, 1);
    check_optional("statistics", args_.statistics, kFloat64, kAlignBlockSizeNumStatistics);
    check_optional("validation", args_.validation, kInt64, kAlignBlockSizeValidationLength);
  }

  std::int64_t capacity() const {
    const std::int64_t num_groups = num_experts_ + (args_.filtered_group ? 1 : 0);
    const std::int64_t exact = num_ids_ + std::min(num_ids_, num_groups) * (block_size_ - 1);
    return args_.pad_sorted_ids ? (exact + block_size_ - 1) / block_size_ * block_size_ : exact;
  }

  Id id(std::int64_t i) const { return read_(args_.topk_ids.data, i, num_experts_); }

  bool is_invalid(std::int64_t i) const {
    const std::int64_t bucket = id(i).bucket;
    return bucket == kNoGroup || (bucket == kFilteredGroup && !args_.filtered_group);
  }

  /// map(expert) of the contract.
  std::int64_t mapped(std::int64_t expert) const {
    if (expert < 0 || expert >= num_experts_) return -1;
    const std::int64_t local = int32s(args_.expert_map)[static_cast<std::size_t>(expert)];
    return local >= 0 && local < num_experts_ ? local : -1;
  }

  std::int64_t group(std::int64_t i) const {
    if (is_invalid(i)) return kNoGroup;
    const std::int64_t bucket = id(i).bucket;
    const bool local_groups = args_.expert_map.given() && args_.ignore_invalid_experts;
    if (bucket == kFilteredGroup || !local_groups) return bucket;
    return mapped(bucket) == -1 ? kNoGroup : mapped(bucket);
  }

  void count() {
    counts_.assign(static_cast<std::size_t>(num_experts_), 0);
    for (std::int64_t i = 0; i < num_ids_; ++i) {
      const std::int64_t g = group(i);
      if (g == kFilteredGroup) ++num_filtered_;
      if (g >= 0) ++counts_[static_cast<std::size_t>(g)];
      if (is_invalid(i)) ++num_invalid_ids_;
    }
    for_each_group([&](const Slots& slots) { padded_total_ = slots.end; });
  }

  template <typename Visit>
  void for_each_group(Visit visit) const {
    std::int64_t begin = 0;
    for (std::int64_t group = kFilteredGroup; group < num_experts_; ++group) {
      const std::int64_t members =
          group == kFilteredGroup ? num_filtered_ : counts_[static_cast<std::size_t>(group)];
      const std::int64_t end = begin + (members + block_size_ - 1) / block_size_ * block_size_;
      visit(Slots{group, begin, begin + members, end});
      begin = end;
    }
  }

  void check_num_tokens_post_pad() {
    const std::int64_t found = int32s(args_.num_tokens_post_pad)[0];
    if (found != padded_total_) {
      add_value("num_tokens_post_pad", "num_tokens_post_pad", 0, padded_total_, found);
    }
  }

  void check_groups() {
    const auto sorted = int32s(args_.sorted_token_ids);
    seen_.assign(static_cast<std::size_t>(num_ids_), false);
    for_each_group([&](const Slots& slots) {
      check_members(slots, sorted);
      check_filler("padding", slots.members_end, slots.end);
    });
    check_filler("sorted_tail", padded_total_, args_.sorted_token_ids.num_elements);
  }

  void check_members(const Slots& slots, std::span<const std::int32_t> sorted) {
    std::int64_t stranger = -1;  // slot of the first value that is not a member
    std::int64_t repeat = -1;    // slot of the first member that has occurred before
    std::int64_t previous = -1;  // member in the previous slot
    for (std::int64_t slot = slots.begin; slot < slots.members_end; ++slot) {
      const std::int64_t index = sorted[static_cast<std::size_t>(slot)];
      if (index < 0 || index >= num_ids_ || group(index) != slots.group) {
        if (stranger < 0) stranger = slot;
        continue;
      }
      if (seen_[static_cast<std::size_t>(index)]) {
        if (repeat < 0) repeat = slot;
      } else if (index < previous && !broken("stable_order")) {
        add("stable_order", "sorted_token_ids", slot, previous + 1, index,
            "an index above " + std::to_string(previous), std::to_string(index));
      }
      seen_[static_cast<std::size_t>(index)] = true;
      previous = index;
    }
    if (stranger >= 0) report_missing("group_members", stranger, slots, sorted);
    if (repeat >= 0) report_missing("no_repeats", repeat, slots, sorted);
  }

  /// A slot of the group holds a wrong value, so one of the group's members is missing.
  void report_missing(const char* rule, std::int64_t slot, const Slots& slots,
                      std::span<const std::int32_t> sorted) {
    if (broken(rule)) return;
    std::int64_t missing = 0;
    while (group(missing) != slots.group || seen_[static_cast<std::size_t>(missing)]) {
      ++missing;
    }
    const std::int64_t found = sorted[static_cast<std::size_t>(slot)];
    add(rule, "sorted_token_ids", slot, missing, found,
        "an index of group " + std::to_string(slots.group) + " such as " + std::to_string(missing) +
            ", which is missing",
        std::to_string(found));
  }

  void check_filler(const char* rule, std::int64_t begin, std::int64_t end) {
    check_values(rule, "sorted_token_ids", args_.sorted_token_ids, begin, end, num_ids_);
  }

  void check_experts() {
    const auto check = [&](const char* rule, std::int64_t begin, std::int64_t end,
                           std::int64_t expected) {
      check_values(rule, "expert_ids", args_.expert_ids, begin, end, expected);
    };
    const bool map_blocks = args_.expert_map.given() && !args_.ignore_invalid_experts;
    for_each_group([&](const Slots& slots) {
      check("block_experts", slots.begin / block_size_, slots.end / block_size_,
            map_blocks ? mapped(slots.group) : slots.group);
    });
    const bool map_tail = args_.expert_map.given() && args_.map_tail;
    check("expert_tail", padded_total_ / block_size_, args_.expert_ids.num_elements,
          map_tail ? mapped(args_.tail_expert) : args_.tail_expert);
  }

  void check_counts() {
    if (args_.expert_counts.given()) {
      const auto found = int32s(args_.expert_counts);
      const auto differs = std::mismatch(counts_.begin(), counts_.end(), found.begin());
      if (differs.first != counts_.end()) {
        add_value("expert_counts", "expert_counts", differs.first - counts_.begin(), *differs.first,
                  *differs.second);
      }
    }
    if (args_.num_dropped.given()) {
      const std::int64_t found = int32s(args_.num_dropped)[0];
      if (found != num_invalid_ids_) {
        add_value("num_dropped", "num_dropped", 0, num_invalid_ids_, found);
      }
    }
  }

  void check_statistics() {
    if (!args_.statistics.given()) return;
    std::int64_t assigned = 0;
    std::int64_t active = 0;
    std::int64_t largest = 0;
    for (const std::int64_t load : counts_) {
      assigned += load;
      active += load > 0 ? 1 : 0;
      largest = std::max(largest, load);
    }
    const std::int64_t whole[] = {assigned, active, padded_total_ / block_size_,
                                  padded_total_ - assigned - num_filtered_, largest};
    std::array<double, kAlignBlockSizeNumStatistics> expected{};
    std::copy(std::begin(whole), std::end(whole), expected.begin());
    expected.back() = static_cast<double>(assigned) / static_cast<double>(num_experts_);
    const auto* const found = static_cast<const double*>(args_.statistics.data);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      // Compares bits: a mean is one division, and no statistic is negative zero.
      if (std::bit_cast<std::int64_t>(found[i]) == std::bit_cast<std::int64_t>(expected[i])) {
        continue;
      }
      add("statistics", "statistics", static_cast<std::int64_t>(i), 0, 0, text_of(expected[i]),
          text_of(found[i]));
    }
  }

  void check_validation() {
    if (!args_.validation.given()) return;
    std::array<std::int64_t, kAlignBlockSizeValidationLength> expected{
        num_invalid_ids_, -1, 0, 0, -1, 0};
    for (std::int64_t i = 0; i < num_ids_ && expected[1] < 0; ++i) {
      if (is_invalid(i)) std::tie(expected[1], expected[2]) = std::pair(i, id(i).value);
    }
    if (args_.expert_map.given()) {
      const auto map = int32s(args_.expert_map);
      for (std::int64_t expert = num_experts_ - 1; expert >= 0; --expert) {
        const std::int64_t entry = map[static_cast<std::size_t>(expert)];
        if (entry >= -1 && entry < num_experts_) continue;
        ++expected[3];
        std::tie(expected[4], expected[5]) = std::pair(expert, entry);
      }
    }
    const auto* const found = static_cast<const std::int64_t*>(args_.validation.data);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (found[i] == expected[i]) continue;
      add_value("validation", "validation", static_cast<std::int64_t>(i), expected[i], found[i]);
    }
  }

  const AlignBlockSizeArgs& args_;
  const std::int64_t num_ids_;
  const std::int64_t block_size_;
  const std::int64_t num_experts_;
  const IdReader read_;
  std::vector<std::int32_t> counts_;
  std::int64_t num_filtered_ = 0;
  std::int64_t num_invalid_ids_ = 0;
  std::int64_t padded_total_ = 0;
  std::vector<bool> seen_;
};

}  // namespace

std::vector<Violation> check_align_block_size(const AlignBlockSizeArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
