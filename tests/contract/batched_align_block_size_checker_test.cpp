// The checker of batched_align_block_size accepts right outputs and names the rule that wrong ones
// break; and the generator of its cases gives the same inputs everywhere.
#include "batched_align_block_size_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "batched_align_block_size_cases.hpp"
#include "guarded_call.hpp"

namespace tessera::contract {
namespace {

using Call = test::TypedCall<BatchedAlignBlockSizeArgs>;
using Rules = std::vector<std::string>;

Rules broken_rules(const BatchedAlignBlockSizeArgs& args) {
  Rules rules;
  for (const Violation& v : check_batched_align_block_size(args)) rules.push_back(v.rule);
  return rules;
}

/// Three batches of up to five tokens in blocks of two; the last two counts are broken.
struct ByHand {
  std::vector<std::int32_t> expert_num_tokens = {3, -7, 6};
  std::vector<std::int32_t> sorted_token_ids = {0,  1,  2,  15, 10, 11, 12, 13, 14, 15,
                                                15, 15, 15, 15, 15, 15, 15, 15, 15};
  std::vector<std::int32_t> expert_ids = {0, 0, 2, 2, 2, 8, 8, 8, 8};
  std::vector<std::int32_t> num_tokens_post_pad = {10};

  BatchedAlignBlockSizeArgs args() {
    BatchedAlignBlockSizeArgs a;
    a.expert_num_tokens = TensorView::of(std::span(expert_num_tokens));
    a.max_tokens_per_batch = 5;
    a.block_size = 2;
    a.tail_expert = 8;
    a.sorted_token_ids = TensorView::of(std::span(sorted_token_ids));
    a.expert_ids = TensorView::of(std::span(expert_ids));
    a.num_tokens_post_pad = TensorView::of(std::span(num_tokens_post_pad));
    return a;
  }
};

TEST(BatchedChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(BatchedChecker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  std::swap(example.sorted_token_ids[5], example.sorted_token_ids[6]);
  const auto violations = check_batched_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].rule, "group_members");
  EXPECT_EQ(violations[0].array, "sorted_token_ids");
  EXPECT_EQ(violations[0].position, 5);
  EXPECT_EQ(violations[0].expected, 11);
  EXPECT_EQ(violations[0].found, 12);
  EXPECT_EQ(violations[0].message, "group_members: sorted_token_ids[5]: expected 11, found 12");
}

/// A mutation of correct outputs: the rule that it breaks, and how. It returns false where the case
/// has nothing that it could spoil.
struct Mutation {
  const char* rule;
  bool (*spoil)(Call& call);
};

std::int32_t* ints(const TensorView& view) { return static_cast<std::int32_t*>(view.data); }
std::int32_t total(Call& call) { return *ints(call.args.num_tokens_post_pad); }
std::int64_t filler(Call& call) {
  return call.args.expert_num_tokens.num_elements * call.args.max_tokens_per_batch;
}

/// The last slot below the padded total that holds the filler, or that does not.
std::optional<std::int64_t> last_slot(Call& call, bool holds_filler) {
  for (std::int64_t slot = total(call) - 1; slot >= 0; --slot) {
    const bool is_filler = ints(call.args.sorted_token_ids)[slot] == filler(call);
    if (is_filler == holds_filler) return slot;
  }
  return std::nullopt;
}

const Mutation kMutations[] = {
    {"num_tokens_post_pad",
     [](Call& call) {
       *ints(call.args.num_tokens_post_pad) += static_cast<std::int32_t>(call.args.block_size);
       return true;
     }},
    {"group_members",  // an index is lost
     [](Call& call) {
       const auto slot = last_slot(call, false);
       if (slot) ints(call.args.sorted_token_ids)[*slot] = static_cast<std::int32_t>(filler(call));
       return slot.has_value();
     }},
    {"group_members",  // two indices change places
     [](Call& call) {
       std::int32_t* const sorted = ints(call.args.sorted_token_ids);
       if (total(call) < 2 || sorted[1] == filler(call)) return false;
       std::swap(sorted[0], sorted[1]);
       return true;
     }},
    {"padding",
     [](Call& call) {
       const auto slot = last_slot(call, true);
       if (slot) ints(call.args.sorted_token_ids)[*slot] = 0;
       return slot.has_value();
     }},
    {"sorted_tail",
     [](Call& call) {
       const std::int64_t length = call.args.sorted_token_ids.num_elements;
       if (total(call) == length) return false;
       ints(call.args.sorted_token_ids)[length - 1] -= 1;
       return true;
     }},
    {"block_experts",
     [](Call& call) {
       if (total(call) == 0) return false;
       ints(call.args.expert_ids)[total(call) / call.args.block_size - 1] += 1;
       return true;
     }},
    {"expert_tail",
     [](Call& call) {
       const std::int64_t first = total(call) / call.args.block_size;
       if (first == call.args.expert_ids.num_elements) return false;
       ints(call.args.expert_ids)[first] ^= 1;
       return true;
     }},
    {"output_sizes",
     [](Call& call) {
       call.args.sorted_token_ids.num_elements =
           smallest_sizes({.name = {},
                           .num_batches = call.args.expert_num_tokens.num_elements,
                           .max_tokens_per_batch = call.args.max_tokens_per_batch,
                           .block_size = call.args.block_size})
               .sorted_token_ids -
           1;
       return true;
     }},
    {"output_sizes",
     [](Call& call) {
       call.args.expert_ids.dtype.bits = 64;
       return true;
     }},
    {"valid_inputs",
     [](Call& call) {
       call.args.block_size = 0;
       return true;
     }},
    {"valid_inputs",
     [](Call& call) {
       call.args.max_tokens_per_batch = -1;
       return true;
     }},
    {"valid_inputs",
     [](Call& call) {
       call.args.expert_num_tokens = {};
       return true;
     }},
};

TEST(BatchedChecker, NamesTheRuleOfEveryMutation) {
  std::set<std::string> mutated;
  for (const Mutation& mutation : kMutations) {
    int spoiled = 0;
    for (const BatchedAlignBlockSizeCase& c : batched_align_block_size_cases()) {
      if (smallest_sizes(c).sorted_token_ids > 100000) continue;
      SCOPED_TRACE(std::string(mutation.rule) + " on case " + c.name);
      Call call(c);
      ASSERT_TRUE(call.run().ok());
      if (!mutation.spoil(call)) continue;
      ++spoiled;
      EXPECT_EQ(broken_rules(call.args), Rules{mutation.rule});
    }
    EXPECT_GT(spoiled, 5) << mutation.rule;
    mutated.insert(mutation.rule);
  }
  EXPECT_EQ(mutated.size(), std::size(kBatchedAlignBlockSizeRules));
}

TEST(BatchedChecker, RefusesACapacityAboveInt32) {
  ByHand example;
  BatchedAlignBlockSizeArgs args = example.args();
  args.max_tokens_per_batch = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(broken_rules(args), Rules{"valid_inputs"});
}

TEST(BatchedCases, NamesAreUniqueAndRandomOnesKeepToTheirLimit) {
  std::set<std::string> names;
  for (const BatchedAlignBlockSizeCase& c : batched_align_block_size_cases()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
  }
  std::int64_t largest = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    const auto c = random_batched_align_block_size_case(seed, 5000);
    largest = std::max(largest, smallest_sizes(c).sorted_token_ids);
  }
  EXPECT_LE(largest, 5000);
  EXPECT_GT(largest, 4000);
}

// The numbers were recorded once. If the generator changed, replaying a failure by its seed would
// silently run another case.
TEST(BatchedCases, CountsAreTheSameEverywhere) {
  BatchedAlignBlockSizeCase c;
  c.num_batches = 6;
  c.max_tokens_per_batch = 100;
  EXPECT_EQ(make_counts(c, 1), (std::vector<std::int32_t>{57, 75, 98, 44, 44, 77}));
  c.counts = BatchCounts::kOneBatch;
  EXPECT_EQ(make_counts(c, 1), (std::vector<std::int32_t>{0, 0, 0, 100, 0, 0}));
  c.counts = BatchCounts::kBroken;
  EXPECT_EQ(make_counts(c, 17), (std::vector<std::int32_t>{39, 22, -1, 101, 101, 8}));
  c.counts = BatchCounts::kFull;
  EXPECT_EQ(make_counts(c, 1), (std::vector<std::int32_t>(6, 100)));
  c.counts = BatchCounts::kEmpty;
  EXPECT_EQ(make_counts(c, 1), (std::vector<std::int32_t>(6, 0)));
}

}  // namespace
}  // namespace tessera::contract
