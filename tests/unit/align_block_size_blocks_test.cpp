// How many blocks a group takes, for block sizes and totals of their whole ranges; and calls with
// more experts than any table could have.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "cpu/align_block_size_groups.hpp"
#include "guarded_call.hpp"
#include "random_numbers.hpp"

namespace tessera::test {
namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

/// `totals` of the buckets are at least 0.
void expect_block_counts(const std::vector<std::int32_t>& totals, std::int64_t block_size) {
  const cpu::Groups groups(totals.data(), 0, static_cast<int>(totals.size()), 1.0 / block_size);
  int k = 0;
  for (std::size_t bucket = 0; bucket < totals.size(); ++bucket) {
    if (totals[bucket] == 0) continue;
    ASSERT_LT(k, groups.num);
    EXPECT_EQ(groups.bucket[k], static_cast<std::int32_t>(bucket));
    EXPECT_EQ(groups.num_blocks[k], (totals[bucket] + block_size - 1) / block_size)
        << totals[bucket] << " ids in blocks of " << block_size;
    ++k;
  }
  EXPECT_EQ(k, groups.num);
}

/// The multiple of `block_size` nearest to `total`, and its neighbours.
void add_around_multiple(std::int64_t total, std::int64_t block_size,
                         std::vector<std::int32_t>* totals) {
  const std::int64_t multiple = total / block_size * block_size;
  for (const std::int64_t near : {multiple - 1, multiple, multiple + 1}) {
    totals->push_back(static_cast<std::int32_t>(std::clamp<std::int64_t>(near, 0, kInt32Max)));
  }
}

TEST(Blocks, AreAsManyAsTheIdsNeedForEverySmallBlockSize) {
  for (std::int64_t block_size = 1; block_size <= 4096; ++block_size) {
    std::vector<std::int32_t> totals;
    for (std::int64_t k = 0; k < 12; ++k) add_around_multiple(k * block_size, block_size, &totals);
    for (int shift = 24; shift <= 31; ++shift) {
      add_around_multiple((std::int64_t{1} << shift) - 1, block_size, &totals);
    }
    expect_block_counts(totals, block_size);
    if (HasFailure()) return;
  }
}

TEST(Blocks, AreAsManyAsTheIdsNeedForRandomBlockSizes) {
  contract::RandomNumbers random(1);
  for (int i = 0; i < 200000; ++i) {
    const std::int64_t block_size = 1 + random.magnitude_below(kInt32Max);
    std::vector<std::int32_t> totals;
    for (int k = 0; k < 20; ++k) {
      add_around_multiple(random.magnitude_below(kInt32Max + 1), block_size, &totals);
    }
    for (int k = 0; k < 4; ++k) {
      totals.push_back(static_cast<std::int32_t>(random.magnitude_below(kInt32Max + 1)));
    }
    expect_block_counts(totals, block_size);
    if (HasFailure()) return;
  }
}

/// A call with as many ids of expert e as loads[e] says, the experts taking turns.
void expect_contract_holds(const std::vector<std::int64_t>& loads, std::int64_t block_size) {
  std::vector<std::int32_t> ids;
  for (std::int64_t turn = 0; turn < *std::ranges::max_element(loads); ++turn) {
    for (std::size_t e = 0; e < loads.size(); ++e) {
      if (turn < loads[e]) ids.push_back(static_cast<std::int32_t>(e));
    }
  }
  contract::AlignBlockSizeCase c;
  c.num_tokens = std::ssize(ids);
  c.num_experts = std::ssize(loads);
  c.block_size = block_size;
  c.statistics = true;
  TypedCall<AlignBlockSizeArgs> call(c);
  call.args.topk_ids = TensorView::of(std::span(ids));
  for (const std::string& implementation : host_implementations(c)) {
    Context context;
    context.implementation = implementation;
    call.poison_outputs(kPoison);
    ASSERT_TRUE(call.run(context).ok());
    for (const contract::Violation& violation : contract::check_align_block_size(call.args)) {
      ADD_FAILURE() << implementation << ", blocks of " << block_size << ": " << violation.message;
    }
  }
}

TEST(Blocks, ContractHoldsForEverySmallBlockSize) {
  for (std::int64_t b = 1; b <= 1024 && !HasFailure(); ++b) {
    expect_contract_holds({b - 1, b, b + 1, 2 * b - 1, 2 * b, 2 * b + 1, 0, 3 * b + 1}, b);
  }
}

TEST(Blocks, ContractHoldsForLargeBlockSizes) {
  for (const std::int64_t b : {1025, 4096, 65535, 65537, 1000003}) {
    expect_contract_holds({b - 1, b, b + 1}, b);
  }
  // One block is all that fits into int32: without ids it takes no memory.
  for (const std::int64_t num_experts : {1, 1000}) {
    contract::AlignBlockSizeCase c;
    c.num_experts = num_experts;
    c.block_size = kInt32Max;
    c.pad_sorted_ids = true;
    c.extra_length = 5;
    for (const std::string& implementation : host_implementations(c)) {
      TypedCall<AlignBlockSizeArgs> call(c);
      Context context;
      context.implementation = implementation;
      ASSERT_TRUE(call.run(context).ok());
      EXPECT_TRUE(contract::check_align_block_size(call.args).empty());
    }
  }
}

// Needs no memory or time for the maximum number of experts: no output is that long.
TEST(ManyExperts, AreSortedInMemoryOfTheIds) {
  constexpr std::int32_t kMostExperts = 1 << 30;
  for (const std::int64_t num_ids : {16, 17, 1000}) {
    contract::RandomNumbers random(static_cast<std::uint64_t>(num_ids));
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_ids));
    for (std::int32_t& id : ids) {
      id = static_cast<std::int32_t>(random.below(kMostExperts / 100) * 100);
    }
    ids[1] = kMostExperts;  // dropped
    ids[2] = kMostExperts - 1;
    ids[3] = ids[5] = ids[0];
    std::vector<std::pair<std::int32_t, std::int32_t>> pairs;
    for (std::int32_t i = 0; i < num_ids; ++i) {
      if (i != 1) pairs.emplace_back(ids[i], i);
    }
    std::sort(pairs.begin(), pairs.end());
    std::vector<std::int32_t> sorted_token_ids, expert_ids;
    for (std::size_t k = 0; k < pairs.size(); ++k) {
      if (k > 0 && pairs[k].first == pairs[k - 1].first && sorted_token_ids.size() % 2 != 0) {
        sorted_token_ids.push_back(pairs[k].second);
        continue;
      }
      if (sorted_token_ids.size() % 2 != 0) {
        sorted_token_ids.push_back(static_cast<std::int32_t>(num_ids));
      }
      expert_ids.push_back(pairs[k].first);
      sorted_token_ids.push_back(pairs[k].second);
    }
    const std::size_t total = (sorted_token_ids.size() + 1) / 2 * 2;
    sorted_token_ids.resize(2 * num_ids, static_cast<std::int32_t>(num_ids));
    expert_ids.resize(num_ids, -1);

    contract::AlignBlockSizeCase c;
    c.num_tokens = num_ids;
    c.num_experts = 1;
    c.block_size = 2;
    c.extra_length = num_ids - 1;
    c.statistics = true;
    c.validation = true;
    for (const std::string& implementation : host_implementations(c)) {
      SCOPED_TRACE(implementation + ", " + std::to_string(num_ids) + " ids");
      TypedCall<AlignBlockSizeArgs> call(c);
      call.args.num_experts = kMostExperts;
      call.args.topk_ids = TensorView::of(std::span(ids));
      call.args.expert_counts = {};
      Context context;
      context.implementation = implementation;
      const Status status = call.run(context);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(call.damage(), "");
      const Outputs outputs = call.outputs();
      EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[0], static_cast<std::int32_t>(total));
      const auto head = [&](const char* output, std::int64_t length) {
        std::vector<std::int32_t> values = outputs.int32s(output);
        values.resize(static_cast<std::size_t>(length));
        return values;
      };
      EXPECT_EQ(head("sorted_token_ids", 2 * num_ids), sorted_token_ids);
      EXPECT_EQ(head("expert_ids", num_ids), expert_ids);
      EXPECT_EQ(outputs.int32s("num_dropped")[0], 1);
      EXPECT_EQ(outputs.at<double>("statistics")[0], static_cast<double>(num_ids - 1));
      EXPECT_EQ(outputs.at<std::int64_t>("validation"),
                (std::vector<std::int64_t>{1, 1, kMostExperts, 0, -1, 0}));
    }
  }
}

}  // namespace
}  // namespace tessera::test
