// The checker of moe_unpermute accepts right outputs and names the rule that wrong ones break. The
// error bound itself is tested with moe_sum's checker, which computes it by the same code.
#include "moe_unpermute_checker.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "float_bits.hpp"
#include "moe_unpermute_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
const Rules kBoth = {"error_bound", "exact_bits"};

Rules broken_rules(const MoeUnpermuteArgs& args) {
  Rules rules;
  for (const Violation& v : check_moe_unpermute(args)) rules.push_back(v.rule);
  return rules;
}

/// Four rows, of which pairs have three; three tokens of two slots, two columns, in float32. The
/// last token has no pair that counts.
struct ByHand {
  std::vector<float> rows = {1, 2, NAN, NAN, 3, 4, 5, 6};
  std::vector<float> weights = {1, 10, NAN, 100, NAN, NAN};
  std::vector<std::int32_t> inverse = {2, 0, -1, 3, 4, std::numeric_limits<std::int32_t>::min()};
  std::vector<float> output = {13, 24, 500, 600, 0, 0};

  MoeUnpermuteArgs args() {
    MoeUnpermuteArgs a;
    a.rows = TensorView::of(rows.data(), kFp32, {4, 2});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {3, 2});
    a.inverse = TensorView::of(inverse.data(), kInt32, {3, 2});
    a.output = TensorView::of(output.data(), kFp32, {3, 2});
    return a;
  }
};

TEST(MoeUnpermuteChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  MoeUnpermuteArgs unweighted = example.args();
  unweighted.topk_weights = {};
  example.output = {4, 6, 5, 6, 0, 0};
  EXPECT_EQ(broken_rules(unweighted), Rules{});
}

TEST(MoeUnpermuteChecker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  example.output[3] = std::nextafter(600.0F, 0.0F);
  const auto near = check_moe_unpermute(example.args());
  ASSERT_EQ(near.size(), 1U);
  EXPECT_EQ(near[0].rule, "exact_bits");
  EXPECT_EQ(near[0].array, "output");
  EXPECT_EQ(near[0].position, 3);
  EXPECT_EQ(near[0].expected, 600.0);
  EXPECT_EQ(near[0].found, double{example.output[3]});
  EXPECT_EQ(near[0].message,
            "exact_bits: output[1, 1]: expected 600.0 (0x44160000), "
            "found 599.9999389648438 (0x4415ffff)");
  example.output[3] = -600;
  const auto far = check_moe_unpermute(example.args());
  ASSERT_EQ(far.size(), 2U);
  EXPECT_EQ(far[0].rule, "error_bound");
  EXPECT_EQ(far[0].message,
            "error_bound: output[1, 1]: expected a value in [599.9999389648438, "
            "600.0000610351562], found -600.0");
}

TEST(MoeUnpermuteChecker, ATokenWithoutAPairThatCountsIsPositiveZero) {
  ByHand example;
  const auto rules_with = [&](float value) {
    example.output[5] = value;
    return broken_rules(example.args());
  };
  EXPECT_EQ(rules_with(0.0F), Rules{});
  EXPECT_EQ(rules_with(-0.0F), Rules{"exact_bits"});
  EXPECT_EQ(rules_with(std::numeric_limits<float>::denorm_min()), kBoth);
  EXPECT_EQ(rules_with(NAN), kBoth);
  example.output[5] = 1;
  EXPECT_EQ(check_moe_unpermute(example.args())[0].message,
            "error_bound: output[2, 1]: expected 0.0, found 1.0");
}

/// A program that computes the op in its own way: the terms of an element, and their sum.
struct Program {
  std::function<bool(std::int64_t row, std::int64_t num_rows)> counts =
      [](std::int64_t row, std::int64_t num_rows) { return row >= 0 && row < num_rows; };
  std::function<std::int64_t(std::int64_t row)> row_of = [](std::int64_t row) { return row; };
  std::function<std::int64_t(std::int64_t pair)> weight_of = [](std::int64_t pair) { return pair; };
  std::function<float(const std::vector<float>& x, const std::vector<float>& w)> sum =
      [](const std::vector<float>& x, const std::vector<float>& w) {
        float sum = -0.0F;
        for (std::size_t i = 0; i < x.size(); ++i) sum = std::fma(w[i], x[i], sum);
        return x.empty() ? 0.0F : sum;
      };
};

Rules rules_of(const MoeUnpermuteCase& c, const Program& program) {
  const CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoeUnpermuteArgs>();
  std::vector<std::uint32_t> output(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
  args.output = TensorView::of(output.data(), kFp32, {c.num_tokens, c.hidden_size});
  const auto* const rows = static_cast<const float*>(args.rows.data);
  const auto* const weights = static_cast<const float*>(args.topk_weights.data);
  const auto* const inverse = static_cast<const std::int32_t*>(args.inverse.data);
  for (std::int64_t t = 0; t < c.num_tokens; ++t) {
    for (std::int64_t h = 0; h < c.hidden_size; ++h) {
      std::vector<float> x;
      std::vector<float> w;
      for (std::int64_t pair = t * c.top_k; pair < (t + 1) * c.top_k; ++pair) {
        if (!program.counts(inverse[pair], c.num_rows)) continue;
        x.push_back(rows[program.row_of(inverse[pair]) * (c.hidden_size + c.row_gap) + h]);
        w.push_back(weights[program.weight_of(pair)]);
      }
      output[static_cast<std::size_t>(t * c.hidden_size + h)] =
          bits_of(kFloat32Format, program.sum(x, w));
    }
  }
  return broken_rules(args);
}

MoeUnpermuteCase some_case() {
  MoeUnpermuteCase c;
  c.num_rows = 200;
  c.num_tokens = 40;
  c.top_k = 6;
  c.hidden_size = 16;
  c.format = kFloat32Format;
  c.weighted = true;
  c.remote = 2;
  c.row_gap = 4;
  return c;
}

TEST(MoeUnpermuteChecker, AcceptsAProgramThatKeepsTheContract) {
  EXPECT_EQ(rules_of(some_case(), {}), Rules{});
}

TEST(MoeUnpermuteChecker, FindsPairsThatAreLeftOutOrAdded) {
  Program program;
  program.counts = [](std::int64_t row, std::int64_t num_rows) {
    return row > 0 && row < num_rows;
  };
  EXPECT_EQ(rules_of(some_case(), program), kBoth);
  program.counts = [](std::int64_t row, std::int64_t num_rows) {
    return row >= 0 && row < num_rows - 1;
  };
  MoeUnpermuteCase c = some_case();
  c.inverse = InverseKind::kRepeated;
  c.num_rows = 20;
  EXPECT_EQ(rules_of(c, program), kBoth);
  // A number beyond the rows, taken for the last row.
  program = {};
  c.inverse = InverseKind::kAnyInt32;
  program.counts = [](std::int64_t row, std::int64_t) { return row >= 0; };
  program.row_of = [&](std::int64_t row) { return std::min(row, c.num_rows - 1); };
  EXPECT_EQ(rules_of(c, program), kBoth);
  // -1, taken for the first one.
  program.counts = [](std::int64_t row, std::int64_t num_rows) {
    return row >= -1 && row < num_rows;
  };
  program.row_of = [](std::int64_t row) { return std::max<std::int64_t>(row, 0); };
  EXPECT_EQ(rules_of(c, program), kBoth);
}

TEST(MoeUnpermuteChecker, FindsOtherRowsAndOtherWeights) {
  Program program;
  program.row_of = [](std::int64_t row) { return row ^ 1; };
  EXPECT_EQ(rules_of(some_case(), program), kBoth);
  program = {};
  program.weight_of = [](std::int64_t pair) { return pair ^ 1; };
  EXPECT_EQ(rules_of(some_case(), program), kBoth);
}

TEST(MoeUnpermuteChecker, FindsNansOfPairsThatDoNotCount) {
  Program program;  // the generator gives these pairs NaNs as weights
  program.counts = [](std::int64_t, std::int64_t) { return true; };
  program.row_of = [](std::int64_t row) { return row >= 0 && row < 200 ? row : 0; };
  program.sum = [](const std::vector<float>& x, const std::vector<float>& w) {
    float sum = -0.0F;
    for (std::size_t i = 0; i < x.size(); ++i) sum = std::fma(w[i], x[i], sum);
    return sum;
  };
  EXPECT_EQ(rules_of(some_case(), program), kBoth);
}

TEST(MoeUnpermuteChecker, OtherOrdersKeepTheErrorBound) {
  Program program;
  program.sum = [](const std::vector<float>& x, const std::vector<float>& w) {
    float sum = 0;
    for (std::size_t i = x.size(); i-- > 0;) sum = std::fma(w[i], x[i], sum);
    return sum;
  };
  MoeUnpermuteCase c = some_case();
  EXPECT_EQ(rules_of(c, program), Rules{"exact_bits"});
  c.values = FloatValues::kCancelling;
  EXPECT_EQ(rules_of(c, program), Rules{"exact_bits"});
  // Products that are rounded by themselves.
  program.sum = [](const std::vector<float>& x, const std::vector<float>& w) {
    float sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float product = w[i] * x[i];
      sum += product;
    }
    return sum;
  };
  EXPECT_EQ(rules_of(some_case(), program), Rules{"exact_bits"});
}

TEST(MoeUnpermuteChecker, RefusesWhatACallRefuses) {
  ByHand example;
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    MoeUnpermuteArgs args = example.args();
    change(&args);
    const auto violations = check_moe_unpermute(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = MoeUnpermuteArgs;
  expect([](Args* a) { a->rows.dtype.code = kDLInt; }, "valid_inputs", "rows");
  expect([](Args* a) { a->rows.ndim = 3; }, "valid_inputs", "rows");
  expect([](Args* a) { a->rows.strides[1] = 2; }, "valid_inputs", "rows");
  expect([](Args* a) { a->rows.strides[0] = 1; }, "valid_inputs", "rows");
  expect([](Args* a) { a->rows.data = nullptr; }, "valid_inputs", "rows");
  expect([](Args* a) { a->inverse = {}; }, "valid_inputs", "inverse");
  expect([](Args* a) { a->inverse.dtype.code = kDLUInt; }, "valid_inputs", "inverse");
  expect([](Args* a) { a->inverse.ndim = 1; }, "valid_inputs", "inverse");
  expect([](Args* a) { a->inverse.data = nullptr; }, "valid_inputs", "inverse");
  expect([](Args* a) { a->inverse = strided(a->inverse, {3, 1}); }, "valid_inputs", "inverse");
  expect([](Args* a) { a->inverse.shape[1] = 0; }, "valid_inputs", "inverse");
  expect([](Args* a) { a->topk_weights.dtype.bits = 16; }, "valid_inputs", "topk_weights");
  expect([](Args* a) { a->topk_weights.shape[0] = 2; }, "valid_inputs", "topk_weights");
  expect([](Args* a) { a->topk_weights.contiguous = false; }, "valid_inputs", "topk_weights");
  expect([](Args* a) { a->output.shape[0] = 2; }, "output_sizes", "output");
  expect([](Args* a) { a->output.shape[1] = 1; }, "output_sizes", "output");
  expect([](Args* a) { a->output.dtype = kBf16; }, "output_sizes", "output");
  expect([](Args* a) { a->output.data = nullptr; }, "output_sizes", "output");
}

TEST(MoeUnpermuteCases, HaveEveryKindOfPair) {
  // What the table's cases have: pairs that do not count, numbers on both sides of the rows, rows
  // that several pairs have, rows without a pair, tokens without a row.
  std::set<std::string> seen;
  for (const MoeUnpermuteCase& c : moe_unpermute_cases()) {
    const CaseArguments made = make_arguments(c, 1);
    const auto* const inverse =
        static_cast<const std::int32_t*>(made.as<MoeUnpermuteArgs>().inverse.data);
    std::vector<int> num_pairs(static_cast<std::size_t>(c.num_rows));
    for (std::int64_t token = 0; token < c.num_tokens; ++token) {
      int counting = 0;
      for (std::int64_t pair = token * c.top_k; pair < (token + 1) * c.top_k; ++pair) {
        const std::int64_t row = inverse[pair];
        if (row >= 0 && row < c.num_rows) {
          ++counting;
          ++num_pairs[static_cast<std::size_t>(row)];
        } else {
          seen.insert(row == -1 ? "-1" : row < 0 ? "below" : row == c.num_rows ? "M" : "above");
        }
      }
      if (counting == 0) seen.insert("a token without a row");
    }
    for (const int pairs : num_pairs) {
      if (pairs == 0) seen.insert("a row without a pair");
      if (pairs > 1) {
        seen.insert("a row with several pairs");
        EXPECT_NE(c.inverse, InverseKind::kPermutation) << c.name;
      }
    }
  }
  EXPECT_EQ(seen, (std::set<std::string>{"-1", "below", "M", "above", "a token without a row",
                                         "a row without a pair", "a row with several pairs"}));
}

}  // namespace
}  // namespace tessera::contract
