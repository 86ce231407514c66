// The checker of moe_permute accepts right outputs and names the rule that wrong ones break.
#include "moe_permute_checker.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "moe_permute_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};

Rules broken_rules(const MoePermuteArgs& args) {
  Rules rules;
  for (const Violation& v : check_moe_permute(args)) rules.push_back(v.rule);
  return rules;
}

/// Three tokens of two slots and three columns, in blocks of two rows: expert 0 has the pairs 1 and
/// 4, expert 1 none, expert 2 the pairs 0, 3 and 5; the id of pair 2 is no expert.
struct ByHand {
  std::vector<std::uint16_t> x = {0x11, 0x12, 0x13, 0x7f81, 0xff82, 0x23, 0x8000, 0x32, 0x33};
  std::vector<std::int32_t> topk_ids = {2, 0, 7, 2, 0, 2};
  std::vector<std::uint16_t> rows = {
      0x11,   0x12,   0x13,    // pair 1
      0x8000, 0x32,   0x33,    // pair 4
      0x11,   0x12,   0x13,    // pair 0
      0x7f81, 0xff82, 0x23,    // pair 3
      0x8000, 0x32,   0x33,    // pair 5
      0,      0,      0,       // padding
      0xa5a5, 0xa5a5, 0xa5a5,  // not in use
      0xa5a5, 0xa5a5, 0xa5a5, 0xa5a5, 0xa5a5, 0xa5a5,
  };
  std::vector<std::int32_t> expert_offsets = {0, 2, 2, 6};
  std::vector<std::int32_t> inverse = {2, 0, -1, 3, 1, 4};

  MoePermuteArgs args() {
    MoePermuteArgs a;
    a.x = TensorView::of(x.data(), kBf16, {3, 3});
    a.topk_ids = TensorView::of(topk_ids.data(), kInt32, {3, 2});
    a.rows = TensorView::of(rows.data(), kBf16, {9, 3});
    a.expert_offsets = TensorView::of(expert_offsets.data(), kInt32, {4});
    a.inverse = TensorView::of(inverse.data(), kInt32, {3, 2});
    a.num_experts = 3;
    a.block_size = 2;
    return a;
  }
};

TEST(MoePermuteChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  EXPECT_EQ(rows_in_use(example.args()), 6);
}

TEST(MoePermuteChecker, AcceptsIdsThatAMapTurnsIntoTheSameExperts) {
  ByHand example;
  std::vector<std::int64_t> ids = {4, 0, std::int64_t{1} << 32, 1, 3, 1};
  std::vector<std::int32_t> map = {0, 2, -1, 0, 2};
  MoePermuteArgs args = example.args();
  args.topk_ids = TensorView::of(ids.data(), kInt64, {3, 2});
  args.expert_map = TensorView::of(map.data(), kInt32, {5});
  EXPECT_EQ(broken_rules(args), Rules{});
  for (const std::int64_t none : {std::int64_t{-1}, std::int64_t{2}, std::int64_t{5}}) {
    ids[2] = none;
    EXPECT_EQ(broken_rules(args), Rules{}) << none;
  }
  map[2] = 3;  // no expert
  ids[2] = 2;
  EXPECT_EQ(broken_rules(args), Rules{});
  map[2] = 1;
  EXPECT_NE(broken_rules(args), Rules{});
}

TEST(MoePermuteChecker, IgnoresRowsThatAreNotInUse) {
  ByHand example;
  for (std::size_t i = 18; i < example.rows.size(); ++i) example.rows[i] = 0x1234;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

struct Mutation {
  const char* what;
  std::function<void(ByHand*)> spoil;
  Rules rules;
  const char* message;  ///< of the first violation
};

TEST(MoePermuteChecker, NamesTheRuleThatAMutationBreaks) {
  const std::vector<Mutation> mutations = {
      {"an offset of an expert without rows",
       [](ByHand* e) { e->expert_offsets[1] = 3; },
       {"expert_offsets"},
       "expert_offsets: expert_offsets[1]: expected 2, found 3"},
      {"a total without padding",
       [](ByHand* e) { e->expert_offsets[3] = 5; },
       {"expert_offsets"},
       "expert_offsets: expert_offsets[3]: expected 6, found 5"},
      {"two pairs of an expert exchanged in the inverse",
       [](ByHand* e) { std::swap(e->inverse[1], e->inverse[4]); },
       {"inverse"},
       "inverse: inverse[1]: expected 0, found 1"},
      {"two pairs of an expert exchanged everywhere",
       [](ByHand* e) {
         std::swap(e->inverse[1], e->inverse[4]);
         std::swap_ranges(e->rows.begin(), e->rows.begin() + 3, e->rows.begin() + 3);
       },
       {"inverse", "token_bits"},
       "inverse: inverse[1]: expected 0, found 1"},
      {"a row for a pair that does not count",
       [](ByHand* e) { e->inverse[2] = 5; },
       {"inverse"},
       "inverse: inverse[2]: expected -1, found 5"},
      {"none for one that does",
       [](ByHand* e) { e->inverse[5] = -1; },
       {"inverse"},
       "inverse: inverse[5]: expected 4, found -1"},
      {"a quieted NaN",
       [](ByHand* e) { e->rows[9] |= 0x40; },
       {"token_bits"},
       "token_bits: rows[3, 0]: expected 0x7f81, as x[1, 0] has, found 0x7fc1"},
      {"a zero without its sign",
       [](ByHand* e) { e->rows[12] = 0; },
       {"token_bits"},
       "token_bits: rows[4, 0]: expected 0x8000, as x[2, 0] has, found 0x0000"},
      {"a negative zero in the padding",
       [](ByHand* e) { e->rows[17] = 0x8000; },
       {"padding"},
       "padding: rows[5, 2]: expected 0x0000, found 0x8000"},
      {"padding that was not written",
       [](ByHand* e) { e->rows[15] = 0xa5a5; },
       {"padding"},
       "padding: rows[5, 0]: expected 0x0000, found 0xa5a5"},
  };
  for (const Mutation& mutation : mutations) {
    SCOPED_TRACE(mutation.what);
    ByHand example;
    mutation.spoil(&example);
    EXPECT_EQ(broken_rules(example.args()), mutation.rules);
    EXPECT_EQ(check_moe_permute(example.args())[0].message, mutation.message);
  }
}

TEST(MoePermuteChecker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  example.rows[10] = 0x0082;
  const auto violations = check_moe_permute(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].array, "rows");
  EXPECT_EQ(violations[0].position, 10);
  EXPECT_EQ(violations[0].expected, 0xff82);
  EXPECT_EQ(violations[0].found, 0x0082);
}

TEST(MoePermuteChecker, RefusesWhatACallRefuses) {
  ByHand example;
  std::vector<std::int32_t> map = {0, 1, 2};
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    MoePermuteArgs args = example.args();
    args.expert_map = TensorView::of(map.data(), kInt32, {3});
    ASSERT_EQ(broken_rules(args), Rules{});
    change(&args);
    const auto violations = check_moe_permute(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = MoePermuteArgs;
  const char* const kInputs = "valid_inputs";
  const char* const kSizes = "output_sizes";
  expect([](Args* a) { a->x.dtype = kInt32; }, kInputs, "x");
  expect([](Args* a) { a->x.ndim = 1; }, kInputs, "x");
  expect([](Args* a) { a->x.strides[1] = 2; }, kInputs, "x");
  expect([](Args* a) { a->x.strides[0] = 2; }, kInputs, "x");
  expect([](Args* a) { a->x.data = nullptr; }, kInputs, "x");
  expect([](Args* a) { a->topk_ids.dtype.code = kDLUInt; }, kInputs, "topk_ids");
  expect([](Args* a) { a->topk_ids.shape[0] = 2; }, kInputs, "topk_ids");
  expect([](Args* a) { a->topk_ids.shape[1] = 0; }, kInputs, "topk_ids");
  expect([](Args* a) { a->topk_ids.strides[0] = 3; }, kInputs, "topk_ids");
  expect([](Args* a) { a->expert_map.dtype = kInt64; }, kInputs, "expert_map");
  expect([](Args* a) { a->expert_map.ndim = 2; }, kInputs, "expert_map");
  expect([](Args* a) { a->num_experts = 0; }, kInputs, "num_experts");
  expect([](Args* a) { a->num_experts = (std::int64_t{1} << 30) + 1; }, kInputs, "num_experts");
  expect([](Args* a) { a->block_size = 0; }, kInputs, "block_size");
  expect([](Args* a) { a->block_size = std::int64_t{1} << 31; }, kInputs, "block_size");
  expect([](Args* a) { a->block_size = (std::int64_t{1} << 31) - 1; }, kInputs, "topk_ids");
  expect([](Args* a) { a->rows.shape[0] = 8; }, kSizes, "rows");
  expect([](Args* a) { a->rows.shape[1] = 2; }, kSizes, "rows");
  expect([](Args* a) { a->rows.dtype.code = kDLFloat; }, kSizes, "rows");
  expect([](Args* a) { a->rows.data = nullptr; }, kSizes, "rows");
  expect([](Args* a) { a->expert_offsets.shape[0] = 3; }, kSizes, "expert_offsets");
  expect([](Args* a) { a->expert_offsets.dtype = kInt64; }, kSizes, "expert_offsets");
  expect([](Args* a) { a->inverse.shape[1] = 3; }, kSizes, "inverse");
  expect([](Args* a) { a->inverse.strides[0] = 3; }, kSizes, "inverse");
}

TEST(MoePermuteChecker, SaysWhatIsWrongWithAnOutput) {
  ByHand example;
  MoePermuteArgs args = example.args();
  args.inverse = TensorView::of(example.inverse.data(), kInt32, {6});
  EXPECT_EQ(check_moe_permute(args)[0].message,
            "output_sizes: inverse: expected contiguous int32[3, 2], found int32[6]");
  args = example.args();
  args.rows.shape[0] = 6;
  EXPECT_EQ(check_moe_permute(args)[0].message,
            "output_sizes: rows: expected bfloat16[9, 3] in contiguous rows, found bfloat16[6, 3]");
}

TEST(MoePermuteChecker, RowsInUseAreNeverMoreThanThereAre) {
  ByHand example;
  for (const auto& [total, expected] : std::vector<std::pair<std::int32_t, std::int64_t>>{
           {-1, 0}, {0, 0}, {5, 5}, {9, 9}, {10, 9}, {2147483647, 9}}) {
    example.expert_offsets[3] = total;
    EXPECT_EQ(rows_in_use(example.args()), expected) << total;
  }
  MoePermuteArgs args = example.args();
  args.expert_offsets.data = nullptr;
  EXPECT_EQ(rows_in_use(args), 0);
}

TEST(MoePermuteCases, HaveEveryKindOfInput) {
  int with_map = 0;
  int with_blocks = 0;
  int with_gaps = 0;
  int unused = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const MoePermuteCase c = random_moe_permute_case(seed, 3000);
    const CaseArguments made = make_arguments(c, seed);
    const auto& args = made.as<MoePermuteArgs>();
    EXPECT_LE(args.rows.num_elements, 3000);
    with_map += args.expert_map.given() ? 1 : 0;
    with_blocks += c.block_size > 1 ? 1 : 0;
    with_gaps += c.rows_gap > 0 ? 1 : 0;
    unused += c.ids == PairIds::kMixed ? 1 : 0;
  }
  EXPECT_GT(with_map, 20);
  EXPECT_GT(with_blocks, 20);
  EXPECT_GT(with_gaps, 20);
  EXPECT_GT(unused, 10);
}

}  // namespace
}  // namespace tessera::contract
