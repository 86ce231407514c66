// What is special to fused_moe: the bits of its two ops one after the other, the choice that it
// writes, and its own messages. What all ops have in common is tested in all_ops.
#include "tessera/fused_moe.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "op_arguments.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};

/// Calls any op with a workspace as large as it asks for.
Status call(const char* op, const void* args, Context context) {
  OpSizes sizes;
  const OpEntry& entry = *find_op(op);
  Status status = entry.sizes(args, context, &sizes);
  if (!status.ok()) return status;
  std::vector<std::byte> workspace(sizes.workspace_bytes);
  context.workspace = workspace;
  return entry.call(args, context);
}

/// Memory of the outputs of a call, and of the choice between both ops.
struct Memory {
  explicit Memory(const FusedMoeArgs& args)
      : num_tokens(args.x.shape[0]),
        top_k(args.top_k),
        output(bytes_of(args.output), std::byte{0x55}),
        weights(static_cast<std::size_t>(num_tokens * top_k), 77),
        ids(weights.size(), 77) {}

  TensorView weights_view() { return TensorView::of(weights.data(), kFp32, {num_tokens, top_k}); }
  TensorView ids_view() { return TensorView::of(ids.data(), kInt32, {num_tokens, top_k}); }

  std::int64_t num_tokens;
  std::int64_t top_k;
  std::vector<std::byte> output;
  std::vector<float> weights;
  std::vector<std::int32_t> ids;
};

SelectExpertsArgs selection_of(const FusedMoeArgs& args, Memory* memory) {
  SelectExpertsArgs selection;
  selection.router_logits = args.router_logits;
  selection.correction_bias = args.correction_bias;
  selection.num_valid_tokens = args.num_valid_tokens;
  selection.topk_weights = memory->weights_view();
  selection.topk_ids = memory->ids_view();
  selection.top_k = args.top_k;
  selection.scoring = args.scoring;
  selection.renormalize = args.renormalize;
  selection.num_expert_group = args.num_expert_group;
  selection.topk_group = args.topk_group;
  selection.routed_scaling_factor = args.routed_scaling_factor;
  return selection;
}

FusedExpertsArgs experts_of(const FusedMoeArgs& args, Memory* memory) {
  FusedExpertsArgs experts;
  experts.x = args.x;
  experts.w13 = args.w13;
  experts.w2 = args.w2;
  experts.topk_weights = memory->weights_view();
  experts.topk_ids = memory->ids_view();
  experts.expert_map = args.expert_map;
  experts.w13_bias = args.w13_bias;
  experts.w2_bias = args.w2_bias;
  experts.output = args.output;
  experts.output.data = memory->output.data();
  experts.activation = args.activation;
  experts.apply_router_weight_on_input = args.apply_router_weight_on_input;
  experts.batch_invariant = args.batch_invariant;
  experts.swiglu_alpha = args.swiglu_alpha;
  experts.swiglu_beta = args.swiglu_beta;
  experts.swiglu_limit = args.swiglu_limit;
  return experts;
}

class FusedMoe : public testing::TestWithParam<std::string> {};

TEST_P(FusedMoe, HasTheBitsOfBothOpsOneAfterTheOther) {
  const auto made = contract::find_contract("fused_moe")->arguments(GetParam(), 1);
  auto args = made.as<FusedMoeArgs>();
  const std::vector<std::string> implementations = implementations_of(made);
  EXPECT_GE(implementations.size(), 2U);
  for (const std::string& implementation : implementations) {
    SCOPED_TRACE(implementation);
    Context context;
    Memory expected(args);
    const SelectExpertsArgs selection = selection_of(args, &expected);
    ASSERT_TRUE(call("select_experts", &selection, context).ok());
    context.implementation = implementation;
    const FusedExpertsArgs experts = experts_of(args, &expected);
    ASSERT_TRUE(call("fused_experts", &experts, context).ok());
    for (int given = 0; given < 4; ++given) {
      Memory found(args);
      args.output.data = found.output.data();
      args.topk_weights = (given & 1) != 0 ? found.weights_view() : TensorView();
      args.topk_ids = (given & 2) != 0 ? found.ids_view() : TensorView();
      const Status status = call("fused_moe", &args, context);
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_TRUE(found.output == expected.output) << given;
      const std::vector<float> no_weights(expected.weights.size(), 77);
      const std::vector<std::int32_t> no_ids(expected.ids.size(), 77);
      EXPECT_EQ(found.weights, (given & 1) != 0 ? expected.weights : no_weights) << given;
      EXPECT_EQ(found.ids, (given & 2) != 0 ? expected.ids : no_ids) << given;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Table, FusedMoe,
                         testing::ValuesIn(contract::find_contract("fused_moe")->case_names()),
                         [](const auto& info) { return info.param; });

TEST(FusedMoeWorkspace, IsNoSmallerForPairsThatNoMachineHasRoomFor) {
  for (const std::int64_t num_tokens :
       {std::int64_t{1} << 8, std::int64_t{1} << 28, std::int64_t{1} << 30, kInt32Max}) {
    for (const std::int64_t top_k : {std::int64_t{1} << 30, kInt32Max}) {
      FusedMoeArgs args;
      args.x = TensorView::of(nullptr, kFp32, {num_tokens, 1});
      args.w13 = TensorView::of(nullptr, kFp32, {kInt32Max, 2, 1});
      args.w2 = TensorView::of(nullptr, kFp32, {kInt32Max, 1, 1});
      args.router_logits = TensorView::of(nullptr, kFp32, {num_tokens, kInt32Max});
      args.output = args.x;
      args.top_k = top_k;
      for (const std::string implementation : {"", "cpu/portable", "cpu/reference"}) {
        Context context;
        context.implementation = implementation;
        std::size_t bytes = 0;
        const Status status = fused_moe_workspace_bytes(args, context, &bytes);
        ASSERT_TRUE(status.ok()) << status.message();
        // A signed number of bytes, as Python's sizes are, holds it, too.
        EXPECT_LT(bytes, std::size_t{1} << 63);
        const std::size_t pairs = std::size_t(num_tokens) * std::size_t(top_k);
        EXPECT_GE(bytes, 8 * std::min(pairs, std::size_t{1} << 58)) << num_tokens << " " << top_k;
      }
    }
  }
}

TEST(FusedMoeImplementations, AreThoseOfTheExperts) {
  const auto names_of = [](const char* op) {
    const auto made = contract::find_contract(op)->arguments("batch", 1);
    std::vector<std::string> names;
    std::vector<ImplementationReport> reports;
    EXPECT_TRUE(find_op(op)->explain(made.args.get(), Context{}, &reports).ok());
    for (const ImplementationReport& report : reports) {
      names.push_back(report.name + (report.selected ? ", selected" : "") + report.refusal);
    }
    return names;
  };
  EXPECT_EQ(names_of("fused_moe"), names_of("fused_experts"));
}

TEST(FusedMoeMessages, NameItsOwnArguments) {
  std::vector<float> x(3 * 8);
  std::vector<float> weights(12 * 8 * 8);
  std::vector<float> logits(3 * 12);
  std::vector<std::int32_t> map(20);
  std::vector<float> output(3 * 8, 77);
  const auto expect = [&](const std::function<void(FusedMoeArgs*)>& change, StatusCode code,
                          const std::string& message) {
    FusedMoeArgs args;
    args.x = TensorView::of(x.data(), kFp32, {3, 8});
    args.w13 = TensorView::of(weights.data(), kFp32, {12, 8, 8});
    args.w2 = TensorView::of(weights.data(), kFp32, {12, 8, 4});
    args.router_logits = TensorView::of(logits.data(), kFp32, {3, 12});
    args.output = TensorView::of(output.data(), kFp32, {3, 8});
    args.top_k = 4;
    args.num_expert_group = 3;
    args.topk_group = 1;
    change(&args);
    const Status status = call("fused_moe", &args, Context{});
    EXPECT_EQ(status.code(), code) << message;
    EXPECT_EQ(status.message(), "fused_moe: " + message);
    EXPECT_EQ(output, std::vector<float>(3 * 8, 77));
  };
  using Args = FusedMoeArgs;
  const StatusCode value = StatusCode::kInvalidValue;
  expect(
      [&](Args* a) {
        a->router_logits = TensorView::of(logits.data(), kFp32, {2, 12});
      },
      value, "router_logits.shape[0]: expected 3, got 2");
  expect(
      [&](Args* a) {
        a->router_logits = TensorView::of(logits.data(), kFp32, {3, 11});
      },
      value, "router_logits.shape[1]: expected 12, got 11");
  expect([&](Args* a) { a->expert_map = TensorView::of(map.data(), kInt32, {15}); }, value,
         "router_logits.shape[1]: expected 15, got 12");
  expect([&](Args* a) { a->expert_map = TensorView::of(map.data(), kInt32, {0}); }, value,
         "expert_map.shape[0]: expected an integer in [1, 2147483647], got 0");
  expect([](Args* a) { a->top_k = 13; }, value, "top_k: expected an integer in [1, 12], got 13");
  expect([](Args* a) { a->top_k = 5; }, value,
         "top_k: expected at most 4, the experts of topk_group = 1 group, got 5");
  expect([](Args* a) { a->num_expert_group = 5; }, value,
         "num_expert_group: expected a divisor of the number of experts, 12, got 5");
  expect([](Args* a) { a->routed_scaling_factor = NAN; }, value,
         "routed_scaling_factor: expected a finite number, got nan");
  expect([](Args* a) { a->activation = Activation::kSiluNoMul; }, value,
         "w13.shape[1]: expected 4, as w2.shape[2] = 4, for activation silu_no_mul, got 8");
  expect(
      [](Args* a) { a->apply_router_weight_on_input = true; }, value,
      "apply_router_weight_on_input: expected false where top_k is not 1, got true with top_k 4");
  expect([](Args* a) { a->router_logits.dtype = kInt32; }, StatusCode::kInvalidType,
         "router_logits.dtype: expected float16, bfloat16 or float32, got int32");
  expect([&](Args* a) { a->output.data = logits.data(); }, value,
         "output: expected memory of its own, got memory shared with router_logits");
  expect(
      [&](Args* a) {
        a->topk_ids = TensorView::of(output.data(), kInt32, {3, 4});
      },
      value, "output: expected memory of its own, got memory shared with topk_ids");
}

}  // namespace
}  // namespace tessera::test
