// The checker of select_experts accepts right outputs and names the rule that wrong ones break.
#include "select_experts_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "float_bits.hpp"
#include "select_experts_arithmetic.hpp"
#include "select_experts_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kInt32Type{kDLInt, 32, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

const Rules kOnlyBits = {"exact_bits"};
const Rules kIdsAndBits = {"ids", "exact_bits"};
const Rules kWeightsAndBits = {"weights", "exact_bits"};

Rules broken_rules(const SelectExpertsArgs& args) {
  Rules rules;
  for (const Violation& v : check_select_experts(args)) rules.push_back(v.rule);
  return rules;
}

float next_up(float x) { return std::nextafter(x, kInf); }

/// One token in float32, with the outputs of the contract, to be changed.
struct OneToken {
  explicit OneToken(std::vector<float> logits_, std::int64_t top_k)
      : logits(std::move(logits_)),
        ids(static_cast<std::size_t>(top_k), -1),
        weights(static_cast<std::size_t>(top_k)) {
    numbers.top_k = top_k;
  }

  SelectExpertsArgs args() {
    SelectExpertsArgs a = numbers;
    const auto num_experts = static_cast<std::int64_t>(logits.size());
    a.router_logits = TensorView::of(logits.data(), kFp32, {1, num_experts});
    if (!bias.empty()) a.correction_bias = TensorView::of(bias.data(), kFp32, {num_experts});
    a.topk_ids = TensorView::of(ids.data(), kInt32Type, {1, a.top_k});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {1, a.top_k});
    return a;
  }

  OneToken& select() {
    std::vector<float> v = logits;
    for (float& value : v) value = std::isnan(value) ? -kInf : value;
    const SelectExpertsArgs a = args();
    const SelectedExperts selected = select_by_contract({v, bias, &a});
    ids = selected.ids;
    weights = selected.weights;
    return *this;
  }

  OneToken& swap(std::size_t a, std::size_t b) {
    std::swap(ids[a], ids[b]);
    std::swap(weights[a], weights[b]);
    return *this;
  }

  /// Other ids, with their weights.
  OneToken& replace_by(std::vector<std::int32_t> other) {
    OneToken all(logits, static_cast<std::int64_t>(logits.size()));
    all.bias = bias;
    all.numbers.scoring = numbers.scoring;
    all.select();
    for (std::size_t slot = 0; slot < other.size(); ++slot) {
      const auto at = std::find(all.ids.begin(), all.ids.end(), other[slot]) - all.ids.begin();
      weights[slot] = all.weights[static_cast<std::size_t>(at)];
    }
    ids = std::move(other);
    return *this;
  }

  Rules rules() { return broken_rules(args()); }

  std::vector<float> logits;
  std::vector<float> bias;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  SelectExpertsArgs numbers;
};

TEST(SelectExpertsChecker, AcceptsTheContract) {
  OneToken token({0.5F, 2, -1, 2, 0}, 3);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{1, 3, 0}));
}

TEST(SelectExpertsChecker, WithoutABiasOnlyOneOrderIsRight) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    // The scores of 20 and of the float after it are equal in float32.
    OneToken token({20, next_up(20), 2, 2, -1}, 3);
    token.numbers.scoring = scoring;
    EXPECT_EQ(token.select().rules(), Rules{});
    EXPECT_EQ(token.swap(0, 1).rules(), kIdsAndBits);
    EXPECT_EQ(token.replace_by({1, 0, 3}).rules(), kIdsAndBits) << "the later of equal ones";
    EXPECT_EQ(token.replace_by({1, 0, 4}).rules(), kIdsAndBits) << "a smaller one";
    EXPECT_EQ(token.replace_by({1, 2, 3}).rules(), kIdsAndBits) << "one is left out";
  }
}

TEST(SelectExpertsChecker, NansRankAsMinusInfinity) {
  OneToken token({NAN, -1, -kInf, 3}, 4);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{3, 1, 0, 2}));
  EXPECT_EQ(token.swap(2, 3).rules(), kIdsAndBits);
  EXPECT_EQ(token.swap(2, 3).rules(), Rules{});
  token.weights[3] = 0x1p-149F;
  EXPECT_EQ(token.rules(), kWeightsAndBits) << "the weight of -inf is exactly 0";
}

TEST(SelectExpertsChecker, ZerosOfBothSignsAreEqual) {
  OneToken token({-0.0F, 0.0F, -1}, 2);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.swap(0, 1).rules(), kIdsAndBits);
}

TEST(SelectExpertsChecker, WithABiasNearChoicesMayChangePlaces) {
  OneToken token({0.25F, 0.5F, 0, 1}, 2);
  token.numbers.scoring = Scoring::kSigmoid;
  // The bias evens out the scores but for the last bits, of experts 0 and 1.
  const float score_0 = static_cast<float>(1 / (1 + std::exp(-0.25)));
  const float score_1 = static_cast<float>(1 / (1 + std::exp(-0.5)));
  token.bias = {2 - score_0, 2 - score_1, 0, 0};
  token.select();
  EXPECT_EQ(token.rules(), Rules{});
  EXPECT_EQ(token.swap(0, 1).rules(), kOnlyBits);
  token.bias[1] += 0x1p-19F;  // some 10 ulp
  token.select();
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{1, 0}));
  EXPECT_EQ(token.swap(0, 1).rules(), kIdsAndBits);
  EXPECT_EQ(token.replace_by({1, 3}).rules(), kIdsAndBits);
}

TEST(SelectExpertsChecker, OfEqualExactChoicesTheFirstComesFirst) {
  OneToken token({-kInf, NAN, 1, 2}, 4);
  token.numbers.scoring = Scoring::kSigmoid;
  token.bias = {5, 5, kInf, kInf};
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{2, 3, 0, 1}));
  EXPECT_EQ(token.swap(0, 1).rules(), kIdsAndBits);
  EXPECT_EQ(token.swap(0, 1).swap(2, 3).rules(), kIdsAndBits);
  // A NaN as a sum ranks last, too.
  token.bias = {5, 5, NAN, 1};
  token.select();
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{3, 0, 1, 2}));
  EXPECT_EQ(token.replace_by({3, 2, 0, 1}).rules(), kIdsAndBits);
}

/// Eight experts in four groups of two, of which two stay.
OneToken grouped(std::vector<float> logits, std::int64_t top_k) {
  OneToken token(std::move(logits), top_k);
  token.numbers.num_expert_group = 4;
  token.numbers.topk_group = 2;
  return token;
}

TEST(SelectExpertsChecker, GroupsStayByTheirLargestLogit) {
  OneToken token = grouped({5, 0, 4, 4, 4, 3, 1, 1}, 3);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{0, 2, 3}));
  EXPECT_EQ(token.replace_by({0, 2, 4}).rules(), kIdsAndBits) << "three groups";
  EXPECT_EQ(token.replace_by({0, 4, 5}).rules(), kIdsAndBits) << "the later of equal groups";
  EXPECT_EQ(token.replace_by({0, 6, 7}).rules(), kIdsAndBits) << "a group with a smaller score";
  EXPECT_EQ(token.replace_by({0, 2, 1}).rules(), kIdsAndBits) << "one is left out";
}

TEST(SelectExpertsChecker, AGroupMayStayOfWhichNoExpertIsChosen) {
  OneToken token = grouped({5, 4, 3, 0, 1, 2, 0, 0}, 2);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{0, 1}));
  // Group 1 stays, so that its expert 2 comes before the second id.
  EXPECT_EQ(grouped({5, 1, 3, 0, 1, 2, 0, 0}, 2).select().replace_by({0, 1}).rules(), kIdsAndBits);
}

TEST(SelectExpertsChecker, WithABiasGroupsStayByTheSumOfTwo) {
  OneToken token = grouped({0, 0, 0, 0, 0, 0, 0, 0}, 2);
  token.numbers.scoring = Scoring::kSigmoid;
  token.bias = {3, 0, 2, 2, 1, 1, 2.5F, 1};
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{6, 2}));
  EXPECT_EQ(token.replace_by({0, 2}).rules(), kIdsAndBits) << "a group by its largest alone";
  EXPECT_EQ(token.replace_by({0, 6}).rules(), kIdsAndBits);
}

TEST(SelectExpertsChecker, WithABiasNearGroupsMayStayInsteadOfEachOther) {
  OneToken token = grouped({0, 0, 0, 0, 0, 0, 0, 0}, 2);
  token.numbers.scoring = Scoring::kSigmoid;
  token.bias = {3, 3, 2, 1, 2, next_up(1), 0, 0};
  token.select();
  EXPECT_EQ(token.rules(), Rules{});
  token.numbers.top_k = 3;
  token.ids.resize(3);
  token.weights.resize(3);
  EXPECT_EQ(token.select().rules(), Rules{});
  EXPECT_EQ(token.ids[2], 2);  // their sums are equal, rounded
  EXPECT_EQ(token.replace_by({0, 1, 4}).rules(), kOnlyBits);
  token.bias[5] = 1.001F;
  EXPECT_EQ(token.select().ids[2], 4);
  EXPECT_EQ(token.replace_by({0, 1, 2}).rules(), kIdsAndBits);
}

/// Changes the weights of a token and returns the rules that break.
Rules rules_of_weights(OneToken token, const std::function<void(std::vector<float>&)>& change) {
  change(token.select().weights);
  return token.rules();
}

TEST(SelectExpertsChecker, WeightsLieWithinTheirBound) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    OneToken token({0.5F, 2, -1, 1.5F, 0, -0.25F}, 3);
    token.numbers.scoring = scoring;
    for (const bool renormalize : {false, true}) {
      token.numbers.renormalize = renormalize;
      const auto scaled = [&](float factor) {
        return rules_of_weights(token, [&](std::vector<float>& w) { w[1] *= factor; });
      };
      EXPECT_EQ(scaled(1), Rules{});
      EXPECT_EQ(rules_of_weights(token, [](std::vector<float>& w) { w[1] = next_up(w[1]); }),
                kOnlyBits);
      EXPECT_EQ(scaled(1 + 0x1p-22F), kOnlyBits);
      EXPECT_EQ(scaled(1 - 0x1p-22F), kOnlyBits);
      EXPECT_EQ(scaled(1 + 0x1p-17F), kWeightsAndBits);
      EXPECT_EQ(scaled(1 - 0x1p-17F), kWeightsAndBits);
      EXPECT_EQ(scaled(0), kWeightsAndBits);
      EXPECT_EQ(scaled(-1), kWeightsAndBits);
      EXPECT_EQ(scaled(NAN), kWeightsAndBits);
      EXPECT_EQ(scaled(kInf), kWeightsAndBits);
    }
  }
}

TEST(SelectExpertsChecker, WeightsAreRenormalisedAndScaled) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    OneToken token({0.5F, 2, -1, 1.5F, 0, -0.25F}, 3);
    token.numbers.scoring = scoring;
    token.numbers.renormalize = true;
    token.numbers.routed_scaling_factor = 2.5F;
    token.select();
    EXPECT_EQ(token.rules(), Rules{});
    token.numbers.renormalize = false;
    EXPECT_EQ(token.rules(), kWeightsAndBits);
    token.numbers.renormalize = true;
    token.numbers.routed_scaling_factor = 1;
    EXPECT_EQ(token.rules(), kWeightsAndBits);
    token.numbers.routed_scaling_factor = -2.5F;
    EXPECT_EQ(token.rules(), kWeightsAndBits);
    EXPECT_EQ(token.select().rules(), Rules{});
  }
}

TEST(SelectExpertsChecker, WeightsOfAnotherScoringBreakTheirRule) {
  OneToken token({0.5F, 2, -1, 1.5F}, 2);
  token.select();
  token.numbers.scoring = Scoring::kSigmoid;
  EXPECT_EQ(token.rules(), kWeightsAndBits);
  token.numbers.scoring = Scoring::kSqrtSoftplus;
  EXPECT_EQ(token.rules(), kWeightsAndBits);
}

TEST(SelectExpertsChecker, WeightsDoNotHoldTheBias) {
  OneToken token({0.5F, 2, -1, 1.5F}, 2);
  token.bias = {0.5F, 0, 0, 0};
  token.select();
  EXPECT_EQ(token.ids, (std::vector<std::int32_t>{0, 1}));
  token.weights[0] += 0.5F;
  EXPECT_EQ(token.rules(), kWeightsAndBits);
}

TEST(SelectExpertsChecker, InfiniteLogitsShareAndOthersHaveNothing) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSqrtSoftplus}) {
    OneToken token({kInf, 1, kInf, 2}, 3);
    token.numbers.scoring = scoring;
    token.select();
    EXPECT_EQ(token.weights, (std::vector<float>{0.5F, 0.5F, 0}));
    EXPECT_EQ(token.rules(), Rules{});
    token.weights = {1, 0, 0};
    EXPECT_EQ(token.rules(), kWeightsAndBits);
    token.weights = {0.5F, 0.5F, 0x1p-149F};
    EXPECT_EQ(token.rules(), kWeightsAndBits);
    token.weights = {0.5F, 0.5F, -0.0F};
    EXPECT_EQ(token.rules(), kOnlyBits);
  }
}

TEST(SelectExpertsChecker, ProgramsMayLoseSubnormals) {
  OneToken token({-95, 3, -110}, 3);
  token.numbers.scoring = Scoring::kSigmoid;
  token.select();
  ASSERT_GT(token.weights[1], 0);
  EXPECT_EQ(token.rules(), Rules{});
  token.weights[1] = 0;
  EXPECT_EQ(token.rules(), kOnlyBits);
  token.weights[1] = 0x1p-124F;
  EXPECT_EQ(token.rules(), kWeightsAndBits);
}

TEST(SelectExpertsChecker, IdsAreValidAndDifferent) {
  const auto rules_of = [](std::vector<std::int32_t> ids) {
    OneToken token({0.5F, 2, -1, 1.5F}, 2);
    token.select().ids = std::move(ids);
    return token.rules();
  };
  const Rules both = {"valid_ids", "exact_bits"};
  EXPECT_EQ(rules_of({1, 3}), Rules{});
  EXPECT_EQ(rules_of({1, 1}), both);
  EXPECT_EQ(rules_of({1, 4}), both);
  EXPECT_EQ(rules_of({1, -1}), both);
  EXPECT_EQ(rules_of({std::numeric_limits<std::int32_t>::min(), 3}), both);
}

}  // namespace
}  // namespace tessera::contract
