// The checker of fused_moe accepts right outputs and names the rule that wrong ones break.
#include "fused_moe_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "fused_experts_checker.hpp"
#include "select_experts_checker.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kInt32Type{kDLInt, 32, 1};

/// Three tokens, of which the last is padding, and two experts; H = F = 1. relu2 makes
/// w2 (w13 x)^2 = 9 and 16 of a token by the two experts. Sigmoids of 0 are exactly 1/2. All
/// products are exact, and so are the sums.
struct ByHand {
  std::vector<float> x = {1, 1, NAN};
  std::vector<float> w13 = {3, 4};
  std::vector<float> w2 = {1, 1};
  std::vector<float> logits = {0, -1, -2, 0, NAN, NAN};
  std::vector<std::int32_t> map = {0, 1};
  std::int32_t num_valid_tokens = 2;
  std::vector<float> output = {4.5F, 8, 0};
  std::vector<float> weights = {0.5F, 0.5F, 0};
  std::vector<std::int32_t> ids = {0, 1, -1};
  FusedMoeArgs args;

  ByHand() {
    args.x = TensorView::of(x.data(), kFp32, {3, 1});
    args.w13 = TensorView::of(w13.data(), kFp32, {2, 1, 1});
    args.w2 = TensorView::of(w2.data(), kFp32, {2, 1, 1});
    args.router_logits = TensorView::of(logits.data(), kFp32, {3, 2});
    args.num_valid_tokens = TensorView::of(&num_valid_tokens, kInt32Type, {1});
    args.output = TensorView::of(output.data(), kFp32, {3, 1});
    args.topk_weights = TensorView::of(weights.data(), kFp32, {3, 1});
    args.topk_ids = TensorView::of(ids.data(), kInt32Type, {3, 1});
    args.top_k = 1;
    args.scoring = Scoring::kSigmoid;
    args.activation = Activation::kRelu2NoMul;
  }
  ByHand(const ByHand&) = delete;
  ByHand& operator=(const ByHand&) = delete;

  void use_map() { args.expert_map = TensorView::of(map.data(), kInt32Type, {2}); }
  void leave_out_choice() { args.topk_weights = args.topk_ids = {}; }
};

Rules rules_of(const std::function<void(ByHand&)>& change) {
  ByHand call;
  change(call);
  Rules rules;
  for (const Violation& v : check_fused_moe(call.args)) rules.push_back(v.rule);
  return rules;
}

TEST(FusedMoeChecker, HasTheRulesOfBothOps) {
  const auto names_of = [](std::span<const Rule> rules) {
    std::vector<std::string> names;
    for (const Rule& rule : rules) names.emplace_back(rule.name);
    return names;
  };
  Rules expected = names_of(kSelectExpertsRules);
  for (const std::string& name : names_of(kFusedExpertsRules)) {
    if (std::ranges::find(expected, name) == expected.end()) expected.push_back(name);
  }
  EXPECT_EQ(names_of(kFusedMoeRules), expected);
}

TEST(FusedMoeChecker, AcceptsOutputsWrittenByHand) {
  EXPECT_EQ(rules_of([](ByHand&) {}), Rules{});
  EXPECT_EQ(rules_of([](ByHand& c) { c.use_map(); }), Rules{});
  EXPECT_EQ(rules_of([](ByHand& c) { c.leave_out_choice(); }), Rules{});
  EXPECT_EQ(rules_of([](ByHand& c) { c.args.topk_ids = {}; }), Rules{});
  EXPECT_EQ(rules_of([](ByHand& c) { c.args.topk_weights = {}; }), Rules{});
  // A token whose expert is elsewhere.
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.use_map();
              c.map[1] = -1;
              c.output[1] = 0;
            }),
            Rules{});
}

TEST(FusedMoeChecker, TheOutputIsThatOfTheChosenExperts) {
  const Rules bound = {"error_bound"};
  for (const bool gives_choice : {true, false}) {
    const auto rules_of_output = [&](std::size_t token, float value) {
      return rules_of([&](ByHand& c) {
        if (!gives_choice) c.leave_out_choice();
        c.output[token] = value;
      });
    };
    EXPECT_EQ(rules_of_output(0, 4.5F), Rules{});
    EXPECT_EQ(rules_of_output(0, 8), bound) << "the other expert";
    EXPECT_EQ(rules_of_output(0, 9), bound) << "without the weight";
    EXPECT_EQ(rules_of_output(1, std::nextafter(8.0F, 9.0F)), bound);
    EXPECT_EQ(rules_of_output(1, 0), bound);
    EXPECT_EQ(rules_of_output(1, NAN), bound);
    EXPECT_EQ(rules_of_output(2, 1), Rules{"no_experts"});
    EXPECT_EQ(rules_of_output(2, -0.0F), Rules{"no_experts"});
  }
  // The map exchanges the experts, or takes one away.
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.use_map();
              c.map = {1, 0};
            }),
            bound);
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.use_map();
              c.map[1] = 2;
            }),
            Rules{"no_experts"});
}

TEST(FusedMoeChecker, WeightsAndIdsAreThoseOfSelectExperts) {
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.ids[0] = 1;
              c.weights[0] = 0.26894142F;
              c.output[0] = c.weights[0] * 16;
            }),
            (Rules{"ids", "exact_bits"}))
      << "the smaller logit, and its output";
  EXPECT_EQ(rules_of([](ByHand& c) { c.ids[0] = 2; }),
            (Rules{"valid_ids", "exact_bits", "no_experts"}));
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.weights[0] = 0.75F;
              c.output[0] = 6.75F;
            }),
            (Rules{"weights", "exact_bits"}));
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.weights[0] = std::nextafter(0.5F, 1.0F);
              c.output[0] = c.weights[0] * 9;
            }),
            Rules{"exact_bits"});
  EXPECT_EQ(rules_of([](ByHand& c) { c.weights[0] = 0.75F; }),
            (Rules{"weights", "exact_bits", "error_bound"}))
      << "the output is not that of these weights";
  EXPECT_EQ(rules_of([](ByHand& c) { c.weights[2] = -0.0F; }), Rules{"padding"});
  EXPECT_EQ(rules_of([](ByHand& c) {
              c.ids[2] = 0;
              c.x[2] = 0;
            }),
            Rules{"padding"});
}

TEST(FusedMoeChecker, NamesAnInputOutsideTheDomain) {
  const auto argument_of = [](const std::function<void(FusedMoeArgs&)>& change) {
    ByHand call;
    call.use_map();
    change(call.args);
    const std::vector<Violation> found = check_fused_moe(call.args);
    return found.size() == 1 && found[0].rule == "valid_inputs" ? found[0].array : "";
  };
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.router_logits.shape[0] = 2; }), "router_logits");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.expert_map.shape[0] = 1; }), "router_logits");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) {
              a.expert_map = {};
              a.w13.shape[0] = 1;
            }),
            "router_logits");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.router_logits.dtype = kInt32Type; }),
            "router_logits");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.top_k = 3; }), "top_k");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.num_expert_group = 3; }), "num_expert_group");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.routed_scaling_factor = NAN; }),
            "routed_scaling_factor");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.w2.dtype = kBf16; }), "w2");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.activation = Activation::kSilu; }), "w13");
  EXPECT_EQ(argument_of([](FusedMoeArgs& a) { a.swiglu_alpha = 1; }), "swiglu_alpha");
}

TEST(FusedMoeChecker, NamesAnOutputOfAnotherSize) {
  const auto array_of = [](const std::function<void(FusedMoeArgs&)>& change) {
    ByHand call;
    change(call.args);
    const std::vector<Violation> found = check_fused_moe(call.args);
    return found.size() == 1 && found[0].rule == "output_sizes" ? found[0].array : "";
  };
  EXPECT_EQ(array_of([](FusedMoeArgs& a) { a.output.shape[0] = 2; }), "output");
  EXPECT_EQ(array_of([](FusedMoeArgs& a) { a.output.dtype = kBf16; }), "output");
  EXPECT_EQ(array_of([](FusedMoeArgs& a) { a.topk_weights.shape[0] = 2; }), "topk_weights");
  EXPECT_EQ(array_of([](FusedMoeArgs& a) { a.topk_ids.dtype = kFp32; }), "topk_ids");
}

}  // namespace
}  // namespace tessera::contract
