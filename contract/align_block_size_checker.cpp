#include "align_block_size_checker.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

namespace tessera::contract {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kNoGroup = -1;

/// The id at position i if it lies in [0, num_experts), else kNoGroup.
using BucketReader = std::int64_t (*)(const void* ids, std::int64_t i, std::int64_t num_experts);

template <typename T>
std::int64_t read_bucket(const void* ids, std::int64_t i, std::int64_t num_experts) {
  const T id = static_cast<const T*>(ids)[i];
  const bool valid = std::cmp_greater_equal(id, 0) && std::cmp_less(id, num_experts);
  return valid ? static_cast<std::int64_t>(id) : kNoGroup;
}

/// Null for every type that is not one of the eight integer types.
BucketReader bucket_reader(DLDataType dtype) {
  if (dtype.lanes != 1) return nullptr;
  if (dtype.code == kDLInt) {
    switch (dtype.bits) {
      case 8:
        return read_bucket<std::int8_t>;
      case 16:
        return read_bucket<std::int16_t>;
      case 32:
        return read_bucket<std::int32_t>;
      case 64:
        return read_bucket<std::int64_t>;
    }
  }
  if (dtype.code == kDLUInt) {
    switch (dtype.bits) {
      case 8:
        return read_bucket<std::uint8_t>;
      case 16:
        return read_bucket<std::uint16_t>;
      case 32:
        return read_bucket<std::uint32_t>;
      case 64:
        return read_bucket<std::uint64_t>;
    }
  }
  return nullptr;
}

bool is_int32(DLDataType dtype) {
  return dtype.code == kDLInt && dtype.bits == 32 && dtype.lanes == 1;
}

/// Whether the elements may be read: contiguous, there, and aligned to their size.
bool readable(const TensorView& view) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return view.contiguous && view.num_elements >= 0 &&
         (view.num_elements == 0 || (address != 0 && address % (view.dtype.bits / 8U) == 0));
}

std::string describe(const TensorView& view) {
  if (!view.given()) return "none";
  return std::to_string(view.num_elements) + (view.contiguous ? "" : " scattered") +
         " values of DLDataType {" + std::to_string(view.dtype.code) + ", " +
         std::to_string(view.dtype.bits) + ", " + std::to_string(view.dtype.lanes) + "}" +
         " at address " + std::to_string(reinterpret_cast<std::uintptr_t>(view.data));
}

std::span<const std::int32_t> int32s(const TensorView& view) {
  return {static_cast<const std::int32_t*>(view.data), static_cast<std::size_t>(view.num_elements)};
}

class Checker {
 public:
  explicit Checker(const AlignBlockSizeArgs& args)
      : args_(args),
        num_ids_(args.topk_ids.num_elements),
        block_size_(args.block_size),
        num_experts_(args.num_experts),
        read_(bucket_reader(args.topk_ids.dtype)) {}

  std::vector<Violation> run() {
    check_inputs();
    if (violations_.empty()) check_sizes();
    if (violations_.empty()) {
      count();
      check_num_tokens_post_pad();
      check_groups();
      check_experts();
      check_statistics();
    }
    return in_order();
  }

 private:
  /// The slots of one group. Its blocks start where the group before it ends.
  struct Slots {
    std::int64_t expert;
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
        (!is_int32(map.dtype) || !readable(map) || map.num_elements != num_experts_)) {
      invalid_input("expert_map", "num_experts contiguous int32 values", describe(map));
    }
    if (violations_.empty() && capacity() > kMaxInt32) {
      invalid_input("block_size", "a capacity of at most 2^31 - 1", std::to_string(capacity()));
    }
  }

  void check_sizes() {
    check_output("sorted_token_ids", args_.sorted_token_ids, capacity(), /*exact=*/false);
    check_output("expert_ids", args_.expert_ids, (capacity() + block_size_ - 1) / block_size_,
                 /*exact=*/false);
    check_output("num_tokens_post_pad", args_.num_tokens_post_pad, 1, /*exact=*/true);
    if (args_.expert_counts.given()) {
      check_output("expert_counts", args_.expert_counts, num_experts_, /*exact=*/true);
    }
    if (args_.num_dropped.given()) {
      check_output("num_dropped", args_.num_dropped, 1, /*exact=*/true);
    }
  }

  void check_output(const char* array, const TensorView& view, std::int64_t length, bool exact) {
    const bool long_enough = exact ? view.num_elements == length : view.num_elements >= length;
    if (is_int32(view.dtype) && readable(view) && long_enough) return;
    report("output_sizes", array, 0, length, view.num_elements,
           (exact ? "" : "at least ") + std::to_string(length) + " contiguous int32 values",
           describe(view));
  }

  std::int64_t capacity() const {
    const std::int64_t exact = num_ids_ + std::min(num_ids_, num_experts_) * (block_size_ - 1);
    return args_.pad_sorted_ids ? (exact + block_size_ - 1) / block_size_ * block_size_ : exact;
  }

  std::int64_t bucket(std::int64_t i) const { return read_(args_.topk_ids.data, i, num_experts_); }

  std::int64_t mapped(std::int64_t expert) const {
    const std::int64_t local = int32s(args_.expert_map)[static_cast<std::size_t>(expert)];
    return local >= 0 && local < num_experts_ ? local : -1;
  }

  std::int64_t group(std::int64_t i) const {
    const std::int64_t expert = bucket(i);
    const bool local_groups = args_.expert_map.given() && args_.ignore_invalid_experts;
    return expert != kNoGroup && local_groups ? mapped(expert) : expert;
  }

  void count() {
    counts_.assign(static_cast<std::size_t>(num_experts_), 0);
    for (std::int64_t i = 0; i < num_ids_; ++i) {
      const std::int64_t g = group(i);
      if (g != kNoGroup) ++counts_[static_cast<std::size_t>(g)];
      if (bucket(i) == kNoGroup) ++num_dropped_;
    }
    for (const std::int32_t members : counts_) {
      padded_total_ += (std::int64_t{members} + block_size_ - 1) / block_size_ * block_size_;
    }
  }

  template <typename Visit>
  void for_each_group(Visit visit) const {
    std::int64_t begin = 0;
    for (std::int64_t expert = 0; expert < num_experts_; ++expert) {
      const std::int64_t members = counts_[static_cast<std::size_t>(expert)];
      const std::int64_t end = begin + (members + block_size_ - 1) / block_size_ * block_size_;
      visit(Slots{expert, begin, begin + members, end});
      begin = end;
    }
  }

  void check_num_tokens_post_pad() {
    const std::int64_t found = int32s(args_.num_tokens_post_pad)[0];
    if (found != padded_total_) {
      report_value("num_tokens_post_pad", "num_tokens_post_pad", 0, padded_total_, found);
    }
  }

  void check_groups() {
    const auto sorted = int32s(args_.sorted_token_ids);
    seen_.assign(static_cast<std::size_t>(num_ids_), false);
    for_each_group([&](const Slots& slots) {
      check_members(slots, sorted);
      check_filler("padding", sorted, slots.members_end, slots.end);
    });
    check_filler("sorted_tail", sorted, padded_total_, args_.sorted_token_ids.num_elements);
  }

  void check_members(const Slots& slots, std::span<const std::int32_t> sorted) {
    std::int64_t stranger = -1;  // slot of the first value that is no member
    std::int64_t repeat = -1;    // slot of the first member that stood before
    std::int64_t previous = -1;  // member in the slot before
    for (std::int64_t slot = slots.begin; slot < slots.members_end; ++slot) {
      const std::int64_t index = sorted[static_cast<std::size_t>(slot)];
      if (index < 0 || index >= num_ids_ || group(index) != slots.expert) {
        if (stranger < 0) stranger = slot;
        continue;
      }
      if (seen_[static_cast<std::size_t>(index)]) {
        if (repeat < 0) repeat = slot;
      } else if (index < previous && !broken("stable_order")) {
        report("stable_order", "sorted_token_ids", slot, previous + 1, index,
               "an index above " + std::to_string(previous), std::to_string(index));
      }
      seen_[static_cast<std::size_t>(index)] = true;
      previous = index;
    }
    if (stranger >= 0) report_missing("group_members", stranger, slots, sorted);
    if (repeat >= 0) report_missing("no_repeats", repeat, slots, sorted);
  }

  /// A slot of `group` holds what it must not, so one of the group's members stands nowhere.
  void report_missing(const char* rule, std::int64_t slot, const Slots& slots,
                      std::span<const std::int32_t> sorted) {
    if (broken(rule)) return;
    std::int64_t missing = 0;
    while (group(missing) != slots.expert || seen_[static_cast<std::size_t>(missing)]) {
      ++missing;
    }
    const std::int64_t found = sorted[static_cast<std::size_t>(slot)];
    report(rule, "sorted_token_ids", slot, missing, found,
           "an index of group " + std::to_string(slots.expert) + " such as " +
               std::to_string(missing) + ", which is missing",
           std::to_string(found));
  }

  void check_filler(const char* rule, std::span<const std::int32_t> sorted, std::int64_t begin,
                    std::int64_t end) {
    if (broken(rule)) return;
    for (std::int64_t slot = begin; slot < end; ++slot) {
      const std::int64_t found = sorted[static_cast<std::size_t>(slot)];
      if (found != num_ids_) {
        report_value(rule, "sorted_token_ids", slot, num_ids_, found);
        return;
      }
    }
  }

  void check_experts() {
    const auto experts = int32s(args_.expert_ids);
    const auto check = [&](const char* rule, std::int64_t begin, std::int64_t end,
                           std::int64_t expected) {
      for (std::int64_t b = begin; b < end && !broken(rule); ++b) {
        const std::int64_t found = experts[static_cast<std::size_t>(b)];
        if (found != expected) report_value(rule, "expert_ids", b, expected, found);
      }
    };
    const bool map_blocks = args_.expert_map.given() && !args_.ignore_invalid_experts;
    for_each_group([&](const Slots& slots) {
      check("block_experts", slots.begin / block_size_, slots.end / block_size_,
            map_blocks ? mapped(slots.expert) : slots.expert);
    });
    check("expert_tail", padded_total_ / block_size_, args_.expert_ids.num_elements,
          args_.tail_expert);
  }

  void check_statistics() {
    if (args_.expert_counts.given()) {
      const auto found = int32s(args_.expert_counts);
      const auto differs = std::mismatch(counts_.begin(), counts_.end(), found.begin());
      if (differs.first != counts_.end()) {
        report_value("expert_counts", "expert_counts", differs.first - counts_.begin(),
                     *differs.first, *differs.second);
      }
    }
    if (args_.num_dropped.given()) {
      const std::int64_t found = int32s(args_.num_dropped)[0];
      if (found != num_dropped_) {
        report_value("num_dropped", "num_dropped", 0, num_dropped_, found);
      }
    }
  }

  bool broken(std::string_view rule) const {
    return std::any_of(violations_.begin(), violations_.end(),
                       [&](const Violation& v) { return v.rule == rule; });
  }

  void invalid_input(const char* argument, const char* expected, const std::string& found) {
    if (broken("valid_inputs")) return;
    violations_.push_back(
        {"valid_inputs", argument, 0, 0, 0,
         std::string("valid_inputs: ") + argument + ": expected " + expected + ", found " + found});
  }

  void report_value(const char* rule, const char* array, std::int64_t position,
                    std::int64_t expected, std::int64_t found) {
    report(rule, array, position, expected, found, std::to_string(expected), std::to_string(found));
  }

  void report(const char* rule, const char* array, std::int64_t position, std::int64_t expected,
              std::int64_t found, const std::string& expected_text, const std::string& found_text) {
    if (broken(rule)) return;
    violations_.push_back({rule, array, position, expected, found,
                           std::string(rule) + ": " + array + "[" + std::to_string(position) +
                               "]: expected " + expected_text + ", found " + found_text});
  }

  std::vector<Violation> in_order() {
    std::vector<Violation> ordered;
    for (const Rule& rule : kAlignBlockSizeRules) {
      for (Violation& violation : violations_) {
        if (violation.rule == rule.name) ordered.push_back(std::move(violation));
      }
    }
    return ordered;
  }

  const AlignBlockSizeArgs& args_;
  const std::int64_t num_ids_;
  const std::int64_t block_size_;
  const std::int64_t num_experts_;
  const BucketReader read_;
  std::vector<std::int32_t> counts_;
  std::int64_t padded_total_ = 0;
  std::int32_t num_dropped_ = 0;
  std::vector<bool> seen_;
  std::vector<Violation> violations_;
};

}  // namespace

std::vector<Violation> check_align_block_size(const AlignBlockSizeArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
