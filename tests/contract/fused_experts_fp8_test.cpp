// Faults of fused_experts with weights in float8_e4m3fn: each is found by a case of the table.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "fused_experts_checker.hpp"
#include "fused_experts_model.hpp"

namespace tessera::contract {
namespace {

struct Fp8FaultFound {
  Fp8Fault fault;
  const char* what;
  const char* in;  ///< a case that finds it
};

constexpr Fp8FaultFound kFp8Faults[] = {
    {Fp8Fault::kScalesOfFirstExpert, "ScalesOfFirstExpert", "fp8_blocks_192"},
    {Fp8Fault::kScalesOfFirstExpert, "ScalesOfFirstExpertPerRow", "fp8_rows"},
    {Fp8Fault::kScalesOfFirstExpert, "ScalesOfFirstExpertPerExpert", "fp8_experts"},
    {Fp8Fault::kScalesExchanged, "ScalesExchanged", "fp8_blocks_704"},
    {Fp8Fault::kScalesOfNextBlock, "ScalesOfNextBlock", "fp8_blocks"},
    {Fp8Fault::kUpBlocksContinue, "UpBlocksContinue192", "fp8_blocks_192"},
    {Fp8Fault::kUpBlocksContinue, "UpBlocksContinue320", "fp8_blocks_320"},
    {Fp8Fault::kUpBlocksContinue, "UpBlocksContinue704", "fp8_blocks_704"},
    {Fp8Fault::kOneScalePerToken, "OneScalePerToken", "fp8_blocks_192"},
    {Fp8Fault::kRoundsIntermediate, "RoundsIntermediate", "fp8_blocks_192"},
    {Fp8Fault::kRoundsIntermediate, "RoundsIntermediatePerRow", "fp8_rows_fp32"},
    {Fp8Fault::kRoundsIntermediate, "RoundsIntermediateBfloat16", "fp8_blocks"},
    {Fp8Fault::kKeepsIntermediate, "KeepsIntermediate", "fp8_blocks"},
    {Fp8Fault::kReciprocal, "Reciprocal", "fp8_ties"},
    {Fp8Fault::kIgnoresUe8m0, "IgnoresUe8m0", "fp8_blocks_704"},
    {Fp8Fault::kIgnoresUe8m0, "IgnoresUe8m0OfIntermediate", "fp8_x_in_groups_exact"},
    {Fp8Fault::kUe8m0RoundsDown, "Ue8m0RoundsDown", "fp8_rows_ue8m0"},
    {Fp8Fault::kComputesGivenScales, "ComputesGivenScales", "fp8_rows_static"},
    {Fp8Fault::kComputesGivenScales, "ComputesGivenScaleOfIntermediate", "fp8_experts_x_static"},
    {Fp8Fault::kInfinityCounts, "InfinityCounts", "fp8_special"},
    {Fp8Fault::kSmallerLeastScale, "SmallerLeastScale", "fp8_tiny"},
    {Fp8Fault::kTruncates, "Truncates", "fp8_blocks"},
    {Fp8Fault::kHidesNan, "HidesNan", "fp8_special"},
    {Fp8Fault::kScalesBias, "ScalesBias", "fp8_rows_fp32"},
};

class FusedExpertsFp8Faults : public testing::TestWithParam<Fp8FaultFound> {};

TEST_P(FusedExpertsFp8Faults, IsFound) {
  const Fp8FaultFound& fault = GetParam();
  const auto cases = fused_experts_cases();
  const auto found = std::ranges::find(cases, std::string(fault.in), &FusedExpertsCase::name);
  ASSERT_NE(found, cases.end());
  FusedExpertsModel model(*found);
  for (const Rows rows : {Rows::kFloat32, Rows::kRounded}) {
    model.run(Order::kForward, rows, Fault::kNone, fault.fault);
    EXPECT_FALSE(check_fused_experts(model.args()).empty()) << static_cast<int>(rows);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FusedExpertsFp8Faults, testing::ValuesIn(kFp8Faults),
                         [](const auto& fault) { return fault.param.what; });

FusedExpertsModel model_of(const char* name) {
  const auto cases = fused_experts_cases();
  return FusedExpertsModel(*std::ranges::find(cases, std::string(name), &FusedExpertsCase::name));
}

TEST(FusedExpertsFp8Checker, TensorCoresMayAddWithFewerBits) {
  FusedExpertsModel model = model_of("fp8_rows_fp32");
  model.run(Order::kForward, Rows::kFloat32, Fault::kNone, Fp8Fault::kRoundsIntermediate);
  EXPECT_FALSE(check_fused_experts(model.args()).empty());
  // An error of up to 2^-9 of the intermediate is less than that of 2^-6 of the sums.
  model.args().output.device = {kDLCUDA, 0};
  EXPECT_TRUE(check_fused_experts(model.args()).empty());
}

TEST(FusedExpertsFp8Checker, RefusesScalesThatACallRefuses) {
  const auto expect = [](const char* in, const std::string& array, auto change) {
    FusedExpertsModel model = model_of(in);
    change(&model.args());
    const auto violations = check_fused_experts(model.args());
    ASSERT_EQ(violations.size(), 1U) << array;
    EXPECT_EQ(violations[0].rule, "valid_inputs");
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = FusedExpertsArgs;
  expect("fp8_blocks", "w13_scale", [](Args* a) { a->w13_scale = {}; });
  expect("fp8_blocks", "w13_scale", [](Args* a) { --a->w13_scale.shape[1]; });
  expect("fp8_blocks", "w2_scale", [](Args* a) { a->w2_scale.dtype.bits = 16; });
  expect("fp8_rows", "w2_scale", [](Args* a) { a->w2_scale.shape[2] = 2; });
  expect("fp8_blocks", "x_scale", [](Args* a) { a->x_scale = a->w13_scale; });
  expect("fp8_x_in_groups", "x_scale", [](Args* a) { a->x_scale = {}; });
  expect("fp8_rows_static", "intermediate_scale", [](Args* a) { a->x_scale = {}; });
  expect("fp8_rows_static", "intermediate_scale", [](Args* a) { a->intermediate_scale = {}; });
  expect("fp8_rows_static", "use_ue8m0", [](Args* a) { a->use_ue8m0 = true; });
  expect("fp8_rows_x", "intermediate_scale", [](Args* a) { a->intermediate_scale = a->x_scale; });
  expect("decode", "w2_scale", [](Args* a) { a->w2_scale = a->topk_weights; });
  expect("decode", "use_ue8m0", [](Args* a) { a->use_ue8m0 = true; });
}

TEST(FusedExpertsFp8Checker, SaysWhichScalesAreExpected) {
  const auto expect = [](const char* in, const std::string& message, auto change) {
    FusedExpertsModel model = model_of(in);
    change(&model.args());
    EXPECT_EQ(check_fused_experts(model.args()).at(0).message, "valid_inputs: " + message);
  };
  using Args = FusedExpertsArgs;
  expect("fp8_rows",
         "w2_scale: expected float32 scales [5, 192, 1] per row, as w13 has, found none",
         [](Args* a) { a->w2_scale = {}; });
  expect("fp8_rows",
         "w2_scale: expected float32 scales [5, 192, 1] per row, as w13 has, found "
         "float16[5, 192, 1]",
         [](Args* a) { a->w2_scale.dtype.bits = 16; });
  expect("fp8_blocks",
         "w13_scale: expected float32 scales [8] per expert or [8, 512, 1] per row or [8, 4, 4] of "
         "blocks, found none",
         [](Args* a) { a->w13_scale = {}; });
  expect("fp8_blocks",
         "x_scale: expected none where weights have scales of blocks and x is not float8_e4m3fn, "
         "found float32[8, 4, 4]",
         [](Args* a) { a->x_scale = a->w13_scale; });
  expect("fp8_x_in_groups", "x_scale: expected float32 scales [4, 3], found none",
         [](Args* a) { a->x_scale = {}; });
  expect("fp8_rows_static",
         "intermediate_scale: expected a float32 scale [1], as x_scale is, found none",
         [](Args* a) { a->intermediate_scale = {}; });
  expect("decode", "w2_scale: expected none without float8_e4m3fn, found float32[1, 8]",
         [](Args* a) { a->w2_scale = a->topk_weights; });
}

}  // namespace
}  // namespace tessera::contract
