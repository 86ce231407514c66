// The checker accepts right outputs and catches wrong ones: every rule is broken in many cases, and
// the checker has to name that rule.
#include "align_block_size_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using test::GuardedCall;

std::vector<std::string> broken_rules(const AlignBlockSizeArgs& args) {
  std::vector<std::string> rules;
  for (const Violation& violation : check_align_block_size(args)) rules.push_back(violation.rule);
  return rules;
}

using Rules = std::vector<std::string>;

/// The worked example with two broken ids and a remote expert, its outputs written by hand.
struct ByHand {
  std::vector<std::int8_t> topk_ids = {2, 0, -1, 1, 2, 2, 3, 0, 9, 2};
  std::vector<std::int32_t> expert_map = {1, -1, 0, 7};
  // Groups by global expert: 0 {1, 7}, 1 {3}, 2 {0, 4, 5, 9}, 3 {6}, in blocks of 3.
  std::vector<std::int32_t> sorted_token_ids = {1, 7,  10, 3, 10, 10, 0,  4,  5,
                                                9, 10, 10, 6, 10, 10, 10, 10, 10};
  std::vector<std::int32_t> expert_ids = {1, -1, 0, 0, -1, 5};
  std::vector<std::int32_t> num_tokens_post_pad = {15};
  std::vector<std::int32_t> expert_counts = {2, 1, 4, 1};
  std::vector<std::int32_t> num_dropped = {2};

  AlignBlockSizeArgs args() {
    AlignBlockSizeArgs a;
    a.topk_ids = TensorView::of(std::span(topk_ids));
    a.block_size = 3;
    a.num_experts = 4;
    a.expert_map = TensorView::of(std::span(expert_map));
    a.tail_expert = 5;
    a.sorted_token_ids = TensorView::of(std::span(sorted_token_ids));
    a.expert_ids = TensorView::of(std::span(expert_ids));
    a.num_tokens_post_pad = TensorView::of(std::span(num_tokens_post_pad));
    a.expert_counts = TensorView::of(std::span(expert_counts));
    a.num_dropped = TensorView::of(std::span(num_dropped));
    return a;
  }
};

TEST(Checker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(Checker, AcceptsLocalGroupsWrittenByHand) {
  ByHand example;
  // Local expert 0 is global 2, local 1 is global 0; 1 and 3 are remote and leave no block.
  example.sorted_token_ids = {0, 4, 5, 9, 10, 10, 1, 7, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10};
  example.expert_ids = {0, 0, 1, 5, 5, 5};
  example.num_tokens_post_pad = {9};
  example.expert_counts = {4, 2, 0, 0};
  AlignBlockSizeArgs args = example.args();
  args.ignore_invalid_experts = true;
  EXPECT_EQ(broken_rules(args), Rules{});
}

TEST(Checker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  std::swap(example.sorted_token_ids[7], example.sorted_token_ids[8]);
  const auto violations = check_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].rule, "stable_order");
  EXPECT_EQ(violations[0].array, "sorted_token_ids");
  EXPECT_EQ(violations[0].position, 8);
  EXPECT_EQ(violations[0].expected, 6);
  EXPECT_EQ(violations[0].found, 4);
  EXPECT_EQ(violations[0].message,
            "stable_order: sorted_token_ids[8]: expected an index above 5, found 4");
}

TEST(Checker, NamesTheMemberThatIsMissing) {
  ByHand example;
  example.sorted_token_ids[7] = 3;  // of expert 1
  const auto violations = check_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].message,
            "group_members: sorted_token_ids[7]: expected an index of group 2 such as 4, which is "
            "missing, found 3");
}

/// A finished, correct call, and what one needs to spoil it with aim.
class Finished {
 public:
  explicit Finished(const AlignBlockSizeCase& c)
      : call_(c), random_(7), num_experts_(c.num_experts) {
    const Status status = call_.run();
    EXPECT_TRUE(status.ok()) << status.message();
  }

  AlignBlockSizeArgs& args() { return call_.args; }
  std::int64_t num_ids() { return args().topk_ids.num_elements; }
  std::int64_t total() { return *data(args().num_tokens_post_pad); }
  std::int32_t& sorted(std::int64_t slot) { return data(args().sorted_token_ids)[slot]; }
  std::int32_t& expert(std::int64_t block) { return data(args().expert_ids)[block]; }
  std::int32_t& count(std::int64_t group) { return data(args().expert_counts)[group]; }
  std::int32_t* data(const TensorView& view) { return static_cast<std::int32_t*>(view.data); }

  /// A random element of those that satisfy `is_such`, if any does.
  std::optional<std::int64_t> pick(std::int64_t end,
                                   const std::function<bool(std::int64_t)>& is_such) {
    std::vector<std::int64_t> such;
    for (std::int64_t i = 0; i < end; ++i) {
      if (is_such(i)) such.push_back(i);
    }
    if (such.empty()) return std::nullopt;
    return such[random_.below(std::ssize(such))];
  }

  bool is_member(std::int64_t slot) { return slot < total() && sorted(slot) != num_ids(); }

  /// Whether both slots hold members of one group. Counts tell where the groups lie.
  bool same_group(std::int64_t a, std::int64_t b) { return group_at(a) == group_at(b); }

  std::int64_t group_at(std::int64_t slot) {
    const std::int64_t block_size = args().block_size;
    std::int64_t end = 0;
    for (std::int64_t group = 0; group < num_experts_; ++group) {
      end += (count(group) + block_size - 1) / block_size * block_size;
      if (slot < end) return group;
    }
    return -1;
  }

  std::int32_t garbage() {
    const std::int32_t values[] = {-1, INT32_MIN, INT32_MAX,
                                   static_cast<std::int32_t>(num_ids()) + 1};
    return values[random_.below(4)];
  }

 private:
  GuardedCall call_;
  RandomNumbers random_;
  std::int64_t num_experts_;
};

struct Mutation {
  const char* name;
  Rules broken;  ///< exactly these
  /// Spoils the outputs; false where the case offers no chance to.
  std::function<bool(Finished&)> spoil;
};

const Mutation kMutations[] = {
    {"no_ids_dtype",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().topk_ids.dtype = {kDLFloat, 32, 1};
       return true;
     }},
    {"block_size_0",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().block_size = 0;
       return true;
     }},
    {"capacity_overflow",
     {"valid_inputs"},
     [](Finished& f) {
       f.args().block_size = INT32_MAX;
       return f.num_ids() > 1;
     }},
    {"sorted_one_short",
     {"output_sizes"},
     [](Finished& f) {
       const std::int64_t n = f.num_ids();
       const std::int64_t capacity =
           n + std::min(n, f.args().num_experts) * (f.args().block_size - 1);
       f.args().sorted_token_ids.num_elements = capacity - 1;
       return true;
     }},
    {"expert_ids_not_int32",
     {"output_sizes"},
     [](Finished& f) {
       f.args().expert_ids.dtype = {kDLUInt, 32, 1};
       return true;
     }},
    {"sorted_misaligned",
     {"output_sizes"},
     [](Finished& f) {
       f.args().sorted_token_ids.data = reinterpret_cast<std::byte*>(&f.sorted(0)) + 1;
       return f.num_ids() > 0;
     }},
    {"counts_one_short",
     {"output_sizes"},
     [](Finished& f) {
       --f.args().expert_counts.num_elements;
       return true;
     }},
    {"total_one_block_more",
     {"num_tokens_post_pad"},
     [](Finished& f) {
       *f.data(f.args().num_tokens_post_pad) += static_cast<std::int32_t>(f.args().block_size);
       return true;
     }},
    {"total_garbage",
     {"num_tokens_post_pad"},
     [](Finished& f) {
       *f.data(f.args().num_tokens_post_pad) = f.garbage();
       return true;
     }},
    {"member_garbage",
     {"group_members"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"member_is_filler",
     {"group_members"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (slot) f.sorted(*slot) = static_cast<std::int32_t>(f.num_ids());
       return slot.has_value();
     }},
    {"members_of_two_groups_swapped",
     {"group_members"},
     [](Finished& f) {
       const auto a = f.pick(f.total(), [&](auto s) { return f.is_member(s); });
       if (!a) return false;
       const auto b =
           f.pick(f.total(), [&](auto s) { return f.is_member(s) && !f.same_group(s, *a); });
       if (b) std::swap(f.sorted(*a), f.sorted(*b));
       return b.has_value();
     }},
    {"member_repeated",
     {"no_repeats"},
     [](Finished& f) {
       const auto slot = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1);
       });
       if (slot) f.sorted(*slot + 1) = f.sorted(*slot);
       return slot.has_value();
     }},
    {"neighbours_swapped",
     {"stable_order"},
     [](Finished& f) {
       const auto slot = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1);
       });
       if (slot) std::swap(f.sorted(*slot), f.sorted(*slot + 1));
       return slot.has_value();
     }},
    {"group_reversed",
     {"stable_order"},
     [](Finished& f) {
       const auto begin = f.pick(f.total() - 1, [&](auto s) {
         return f.is_member(s) && f.is_member(s + 1) && f.same_group(s, s + 1) &&
                (s == 0 || !f.same_group(s - 1, s));
       });
       if (!begin) return false;
       std::int64_t end = *begin;
       while (f.is_member(end) && f.same_group(*begin, end)) ++end;
       std::reverse(&f.sorted(*begin), &f.sorted(*begin) + (end - *begin));
       return true;
     }},
    {"padding_garbage",
     {"padding"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return !f.is_member(s); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"padding_is_an_index",
     {"padding"},
     [](Finished& f) {
       const auto slot = f.pick(f.total(), [&](auto s) { return !f.is_member(s); });
       if (slot) f.sorted(*slot) = 0;
       return slot.has_value();
     }},
    {"sorted_tail_unwritten",
     {"sorted_tail"},
     [](Finished& f) {
       const std::int64_t length = f.args().sorted_token_ids.num_elements;
       const auto slot = f.pick(length, [&](auto s) { return s >= f.total(); });
       if (slot) f.sorted(*slot) = f.garbage();
       return slot.has_value();
     }},
    {"block_of_another_expert",
     {"block_experts"},
     [](Finished& f) {
       const auto block = f.pick(f.total() / f.args().block_size, [](auto) { return true; });
       if (block) ++f.expert(*block);
       return block.has_value();
     }},
    {"block_garbage",
     {"block_experts"},
     [](Finished& f) {
       const auto block = f.pick(f.total() / f.args().block_size, [](auto) { return true; });
       if (block) f.expert(*block) = INT32_MIN;
       return block.has_value();
     }},
    {"expert_tail_unwritten",
     {"expert_tail"},
     [](Finished& f) {
       const std::int64_t length = f.args().expert_ids.num_elements;
       const auto block =
           f.pick(length, [&](auto b) { return b >= f.total() / f.args().block_size; });
       if (block) f.expert(*block) ^= 1;
       return block.has_value();
     }},
    {"count_off_by_one",
     {"expert_counts"},
     [](Finished& f) {
       const auto group = f.pick(f.args().num_experts, [](auto) { return true; });
       ++f.count(*group);
       return true;
     }},
    {"dropped_off_by_one",
     {"num_dropped"},
     [](Finished& f) {
       --*f.data(f.args().num_dropped);
       return true;
     }},
    {"everything_at_once",
     {"num_tokens_post_pad", "group_members", "padding", "sorted_tail", "block_experts",
      "expert_tail", "expert_counts", "num_dropped"},
     [](Finished& f) {
       const std::int64_t total = f.total();
       const std::int64_t blocks = total / f.args().block_size;
       const bool has_padding = f.pick(total, [&](auto s) { return !f.is_member(s); }).has_value();
       const bool has_tails = total < f.args().sorted_token_ids.num_elements &&
                              blocks < f.args().expert_ids.num_elements;
       for (const TensorView& view :
            {f.args().sorted_token_ids, f.args().expert_ids, f.args().num_tokens_post_pad,
             f.args().expert_counts, f.args().num_dropped}) {
         std::fill_n(f.data(view), view.num_elements, INT32_MIN);
       }
       return total > 0 && has_padding && has_tails && f.args().tail_expert != INT32_MIN;
     }},
};

class Mutations : public testing::TestWithParam<Mutation> {};

TEST_P(Mutations, AreCaughtByTheRuleThatTheyBreak) {
  constexpr int kEnough = 8;
  int caught = 0;
  for (const AlignBlockSizeCase& c : align_block_size_cases()) {
    if (c.num_tokens * c.top_k > 4000 || c.num_experts > 1024) continue;
    SCOPED_TRACE(c.name);
    Finished finished(c);
    if (!GetParam().spoil(finished)) continue;
    EXPECT_EQ(broken_rules(finished.args()), GetParam().broken);
    ++caught;
  }
  EXPECT_GE(caught, kEnough) << "too few cases offer this mutation a chance";
}

INSTANTIATE_TEST_SUITE_P(, Mutations, testing::ValuesIn(kMutations),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Checker, EveryRuleIsBrokenByAMutation) {
  std::set<std::string> broken;
  for (const Mutation& mutation : kMutations) {
    broken.insert(mutation.broken.begin(), mutation.broken.end());
  }
  for (const Rule& rule : kAlignBlockSizeRules)
    EXPECT_TRUE(broken.contains(rule.name)) << rule.name;
  EXPECT_EQ(broken.size(), std::size(kAlignBlockSizeRules));
}

TEST(Checker, CopesWithAnyGarbageInTheOutputs) {
  RandomNumbers random(11);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const AlignBlockSizeCase c = random_align_block_size_case(seed, 2000);
    GuardedCall call(c, seed);
    for (const TensorView& view :
         {call.args.sorted_token_ids, call.args.expert_ids, call.args.num_tokens_post_pad,
          call.args.expert_counts, call.args.num_dropped}) {
      auto* const values = static_cast<std::int32_t*>(view.data);
      for (std::int64_t i = 0; i < view.num_elements; ++i) {
        values[i] = static_cast<std::int32_t>(random.below(std::int64_t{1} << 32));
      }
    }
    EXPECT_NE(broken_rules(call.args), Rules{}) << c.name;
    EXPECT_EQ(call.damage(), "") << c.name;
  }
}

}  // namespace
}  // namespace tessera::contract
