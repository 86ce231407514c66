// What is special to select_experts: outputs worked out by hand, its own messages, and the caller's
// floating-point environment. What all ops have in common is tested in all_ops.
#include "tessera/select_experts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "select_experts_cases.hpp"
#include "select_experts_checker.hpp"
#include "tessera/ops.hpp"
#include "unusual_environment.hpp"

namespace tessera::test {
namespace {

using enum Scoring;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

/// All implementations that run here. The reference and the portable one run everywhere.
std::vector<std::string> implementations() {
  std::vector<std::string> names;
  std::vector<ImplementationReport> reports;
  const auto made = contract::find_contract("select_experts")->arguments("qwen3", 1);
  EXPECT_TRUE(find_op("select_experts")->explain(made.args.get(), Context{}, &reports).ok());
  for (const ImplementationReport& report : reports) {
    if (report.refusal.empty()) names.push_back(report.name);
  }
  EXPECT_GE(names.size(), 2U);
  return names;
}

/// A call for one token in float32.
struct OneToken {
  const char* what;
  std::vector<float> logits;
  std::vector<float> bias;  ///< empty: none
  Scoring scoring;
  bool renormalize;
  std::int64_t topk_group;
  std::int64_t num_expert_group;
  float factor;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

// clang-format off
const std::vector<OneToken>& by_hand() {
  static const std::vector<OneToken> kAll = {
      {"softmax", {0, 1, 2}, {}, kSoftmax, false, 1, 1, 1, {2, 1}, {0.66524096F, 0.24472847F}},
      {"renormalised", {0, 1, 2}, {}, kSoftmax, true, 1, 1, 1, {2, 1}, {0.73105858F, 0.26894142F}},
      {"scaled", {0, 1, 2}, {}, kSoftmax, true, 1, 1, -2, {2, 1}, {-1.46211716F, -0.53788284F}},
      {"sigmoid", {0, -1, 2}, {}, kSigmoid, false, 1, 1, 1, {2, 0, 1}, {0.88079708F, 0.5F, 0.26894142F}},
      {"sqrt_softplus", {0, 1}, {}, kSqrtSoftplus, false, 1, 1, 1, {1, 0}, {1.14597631F, 0.83255461F}},
      {"small sqrt_softplus", {-40, -90}, {}, kSqrtSoftplus, false, 1, 1, 1, {0, 1}, {2.06115362e-9F, 2.86251858e-20F}},
      {"one expert", {-3}, {}, kSoftmax, false, 1, 1, 1, {0}, {1}},

      {"ties go to the first", {1, 1, 1, 1}, {}, kSoftmax, false, 1, 1, 1, {0, 1, 2, 3}, {0.25F, 0.25F, 0.25F, 0.25F}},
      {"zeros of both signs are equal", {-0.0F, 0, -0.0F, 0}, {}, kSigmoid, false, 1, 1, 1, {0, 1}, {0.5F, 0.5F}},
      {"logits decide where scores are equal", {50, 60, 70}, {}, kSigmoid, false, 1, 1, 1, {2, 1}, {1, 1}},
      {"NaN ranks as -inf", {NAN, 0, -kInf, 0}, {}, kSoftmax, false, 1, 1, 1, {1, 3, 0, 2}, {0.5F, 0.5F, 0, 0}},
      {"no logit above -inf", {NAN, -kInf, NAN}, {}, kSoftmax, true, 1, 1, 2, {0, 1}, {0, 0}},
      {"no logit above -inf, sigmoid", {NAN, -kInf, NAN}, {1, 2, 3}, kSigmoid, true, 1, 1, 1, {0, 1}, {0, 0}},
      {"infinities share", {kInf, 0, kInf, 5}, {}, kSoftmax, false, 1, 1, 1, {0, 2, 3}, {0.5F, 0.5F, 0}},
      {"infinities share, sqrt_softplus", {5, kInf}, {}, kSqrtSoftplus, true, 1, 1, 3, {1, 0}, {3, 0}},
      {"infinities have sigmoid 1", {0, kInf, kInf}, {}, kSigmoid, false, 1, 1, 1, {1, 2, 0}, {1, 1, 0.5F}},
      {"a difference that overflows", {3e38F, -3e38F}, {}, kSoftmax, false, 1, 1, 1, {0, 1}, {1, 0}},

      {"the bias chooses and does not weigh", {0, 0, 0, 0}, {0, 3, 1, 2}, kSigmoid, false, 1, 1, 1, {1, 3}, {0.5F, 0.5F}},
      {"a bias of NaN or -inf ranks last", {1, 0, 2}, {NAN, 0, -kInf}, kSigmoid, false, 1, 1, 1, {1, 0, 2}, {0.5F, 0.73105858F, 0.88079708F}},
      {"no bias lifts -inf", {-kInf, 0, NAN}, {kInf, -9, kInf}, kSigmoid, false, 1, 1, 1, {1, 0}, {0.5F, 0}},
      {"a bias so large that sums are equal", {0, 5, 9}, {1e9F, 1e9F, 1e9F}, kSigmoid, false, 1, 1, 1, {0, 1}, {0.5F, 0.99330715F}},

      {"groups by their largest", {0, 9, 5, 5, 1, 7}, {}, kSoftmax, true, 2, 3, 1, {1, 5}, {0.88079708F, 0.11920292F}},
      {"of equal groups the first", {1, 2, 2, 1, 0, 2}, {}, kSoftmax, true, 2, 3, 1, {1, 2}, {0.5F, 0.5F}},
      {"groups by the sum of two", {0, 0, 0, 0, 0, 0}, {3, 0, 2, 2, 1, 1}, kSigmoid, false, 1, 3, 1, {2, 3}, {0.5F, 0.5F}},
      {"a group sum of NaN ranks last", {0, 0, 0, 0}, {kInf, -kInf, 1, 1}, kSigmoid, false, 1, 2, 1, {2}, {0.5F}},
      {"groups of one by their choice", {0, 1, 2}, {3, 0, 0}, kSigmoid, false, 2, 3, 1, {0, 2}, {0.5F, 0.88079708F}},
      {"scaled to subnormals", {0, 0}, {}, kSoftmax, false, 1, 1, 0x1p-148F, {0, 1}, {0x1p-149F, 0x1p-149F}},
  };
  return kAll;
}
// clang-format on

/// Calls with a workspace as large as the call asks for.
Status call(const SelectExpertsArgs& args, Context context) {
  std::size_t bytes = 0;
  Status status = select_experts_workspace_bytes(args, context, &bytes);
  if (!status.ok()) return status;
  std::vector<std::byte> workspace(bytes);
  context.workspace = workspace;
  return select_experts(args, context);
}

struct Outputs {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Outputs run(const OneToken& token, const std::string& implementation) {
  std::vector<float> logits = token.logits;
  std::vector<float> bias = token.bias;
  const auto num_experts = static_cast<std::int64_t>(logits.size());
  const auto top_k = static_cast<std::int64_t>(token.ids.size());
  Outputs found{std::vector<std::int32_t>(token.ids.size(), 77),
                std::vector<float>(token.ids.size(), 77)};
  SelectExpertsArgs args;
  args.router_logits = TensorView::of(logits.data(), kFp32, {1, num_experts});
  if (!bias.empty()) args.correction_bias = TensorView::of(bias.data(), kFp32, {num_experts});
  args.topk_ids = TensorView::of(found.ids.data(), kInt32, {1, top_k});
  args.topk_weights = TensorView::of(found.weights.data(), kFp32, {1, top_k});
  args.top_k = top_k;
  args.scoring = token.scoring;
  args.renormalize = token.renormalize;
  args.topk_group = token.topk_group;
  args.num_expert_group = token.num_expert_group;
  args.routed_scaling_factor = token.factor;
  Context context;
  context.implementation = implementation;
  const Status status = call(args, context);
  EXPECT_TRUE(status.ok()) << status.message();
  for (const contract::Violation& violation : contract::check_select_experts(args)) {
    ADD_FAILURE() << violation.message;
  }
  return found;
}

/// Within 4 ulp; 0 and 1/2 exactly.
void expect_near(const std::vector<float>& found, const std::vector<float>& expected) {
  for (std::size_t slot = 0; slot < expected.size(); ++slot) {
    EXPECT_FLOAT_EQ(found[slot], expected[slot]) << slot;
    if (expected[slot] == 0 || expected[slot] == 0.5F) {
      EXPECT_EQ(found[slot], expected[slot]) << slot;
    }
  }
}

TEST(SelectExperts, HasTheOutputsThatWereWorkedOutByHand) {
  for (const std::string& implementation : implementations()) {
    for (const OneToken& token : by_hand()) {
      SCOPED_TRACE(implementation + ": " + token.what);
      const Outputs found = run(token, implementation);
      EXPECT_EQ(found.ids, token.ids);
      expect_near(found.weights, token.weights);
    }
  }
}

TEST(SelectExperts, DoesNotDependOnTheEnvironmentOrTheNumberOfThreads) {
  for (const Scoring scoring : {kSoftmax, kSigmoid, kSqrtSoftplus}) {
    contract::SelectExpertsCase c;
    c.num_tokens = 700;
    c.num_experts = 257;
    c.top_k = 20;
    c.scoring = scoring;
    c.logits = contract::LogitValues::kWide;
    c.bias = contract::BiasValues::kOrdinary;
    c.scaling_factor = 2.5F;
    const contract::CaseArguments made = make_arguments(c, 1);
    auto& args = made.as<SelectExpertsArgs>();
    std::vector<std::int32_t> ids(static_cast<std::size_t>(c.num_tokens * c.top_k));
    std::vector<std::uint32_t> weights(ids.size());  // bits: no environment flushes them
    args.topk_ids.data = ids.data();
    args.topk_weights.data = weights.data();
    Context context;
    context.implementation = "cpu/reference";
    ASSERT_TRUE(call(args, context).ok());
    EXPECT_TRUE(contract::check_select_experts(args).empty());
    const std::vector<std::int32_t> expected_ids = ids;
    const std::vector<std::uint32_t> expected_weights = weights;
    for (const std::string& implementation : implementations()) {
      context.implementation = implementation;
      for (const int num_threads : {1, 2, 3, 4}) {
        SCOPED_TRACE(implementation + ", " + std::to_string(num_threads) + " threads");
        context.num_threads = num_threads;
        std::fill(ids.begin(), ids.end(), 77);
        std::fill(weights.begin(), weights.end(), 77);
        const UnusualEnvironment environment;
        ASSERT_TRUE(call(args, context).ok());
        EXPECT_TRUE(environment.is_unchanged());
        EXPECT_TRUE(ids == expected_ids);
        EXPECT_TRUE(weights == expected_weights);
      }
    }
  }
}

TEST(SelectExperts, ATokenDoesNotDependOnTheOthers) {
  contract::SelectExpertsCase c;
  c.num_tokens = 50;
  c.num_experts = 64;
  c.top_k = 8;
  c.logits = contract::LogitValues::kSpecial;
  c.renormalize = true;
  const contract::CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<SelectExpertsArgs>();
  for (const std::string& implementation : implementations()) {
    Context context;
    context.implementation = implementation;
    std::vector<std::int32_t> ids(50 * 8);
    std::vector<float> weights(50 * 8);
    args.topk_ids.data = ids.data();
    args.topk_weights.data = weights.data();
    ASSERT_TRUE(call(args, context).ok());
    for (std::size_t t = 0; t < 50; ++t) {
      SelectExpertsArgs one = args;
      std::int32_t own_ids[8];
      float own_weights[8];
      one.router_logits =
          TensorView::of(static_cast<float*>(args.router_logits.data) + 64 * t, kFp32, {1, 64});
      one.topk_ids = TensorView::of(own_ids, kInt32, {1, 8});
      one.topk_weights = TensorView::of(own_weights, kFp32, {1, 8});
      ASSERT_TRUE(call(one, context).ok());
      EXPECT_TRUE(
          std::equal(own_ids, own_ids + 8, ids.begin() + static_cast<std::ptrdiff_t>(8 * t)));
      EXPECT_TRUE(std::equal(own_weights, own_weights + 8,
                             weights.begin() + static_cast<std::ptrdiff_t>(8 * t)));
    }
  }
}

TEST(SelectExperts, RefusesWithItsOwnMessages) {
  std::vector<float> logits(3 * 12);
  std::vector<float> bias(12);
  std::vector<std::int32_t> ids(3 * 4, 77);
  std::vector<float> weights(3 * 4, 77);
  const auto expect = [&](const std::function<void(SelectExpertsArgs*)>& change, StatusCode code,
                          const std::string& message) {
    SelectExpertsArgs args;
    args.router_logits = TensorView::of(logits.data(), kFp32, {3, 12});
    args.correction_bias = TensorView::of(bias.data(), kFp32, {12});
    args.topk_ids = TensorView::of(ids.data(), kInt32, {3, 4});
    args.topk_weights = TensorView::of(weights.data(), kFp32, {3, 4});
    args.top_k = 4;
    args.num_expert_group = 3;
    args.topk_group = 2;
    change(&args);
    const Status status = call(args, Context{});
    EXPECT_EQ(status.code(), code) << message;
    EXPECT_EQ(status.message(), "select_experts: " + message);
  };
  using Args = SelectExpertsArgs;
  const StatusCode value = StatusCode::kInvalidValue;
  const StatusCode type = StatusCode::kInvalidType;
  expect([](Args* a) { a->router_logits.shape[1] = 0; }, value,
         "router_logits.shape[1]: expected an integer in [1, 2147483647], got 0");
  expect([](Args* a) { a->top_k = 13; }, value, "top_k: expected an integer in [1, 12], got 13");
  expect([](Args* a) { a->num_expert_group = 5; }, value,
         "num_expert_group: expected a divisor of the number of experts, 12, got 5");
  expect([](Args* a) { a->topk_group = 4; }, value,
         "topk_group: expected an integer in [1, 3], got 4");
  expect([](Args* a) { a->top_k = 9; }, value,
         "top_k: expected at most 8, the experts of topk_group = 2 groups, got 9");
  expect([](Args* a) { a->routed_scaling_factor = NAN; }, value,
         "routed_scaling_factor: expected a finite number, got nan");
  expect([](Args* a) { a->routed_scaling_factor = -kInf; }, value,
         "routed_scaling_factor: expected a finite number, got -inf");
  expect([](Args* a) { a->router_logits.dtype = kInt32; }, type,
         "router_logits.dtype: expected float16, bfloat16 or float32, got int32");
  expect(
      [](Args* a) {
        a->router_logits.dtype = {10, 8, 1};
      },
      type, "router_logits.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn");
  expect(
      [](Args* a) {
        a->router_logits.dtype = {12, 8, 1};
      },
      type, "router_logits.dtype: expected float16, bfloat16 or float32, got float8_e5m2");
  expect(
      [](Args* a) {
        a->router_logits.dtype = {18, 8, 1};
      },
      type,
      "router_logits.dtype: expected float16, bfloat16 or float32, got dtype code 18 of bits 8");
  expect([](Args* a) { a->correction_bias.dtype = kBf16; }, type,
         "correction_bias.dtype: expected float32, got bfloat16");
  expect([&](Args* a) { a->correction_bias = TensorView::of(bias.data(), kFp32, {11}); }, value,
         "correction_bias.shape[0]: expected 12, got 11");
  EXPECT_EQ(ids, std::vector<std::int32_t>(3 * 4, 77));
  EXPECT_EQ(weights, std::vector<float>(3 * 4, 77));
}

}  // namespace
}  // namespace tessera::test
