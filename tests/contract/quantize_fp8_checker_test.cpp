// The checker of quantize_fp8 accepts right outputs and names the rule that wrong ones break.
#include "quantize_fp8_checker.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "quantize_fp8_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

Rules broken_rules(const QuantizeFp8Args& args) {
  Rules rules;
  for (const Violation& v : check_quantize_fp8(args)) rules.push_back(v.rule);
  return rules;
}

/// Two tokens of three columns, a scale for each.
struct ByHand {
  std::vector<float> x = {448, -1.0625F, 0.0F, 7, -0.4375F, 3.5F};
  std::vector<float> given;
  // 448; -1 and the nearest even below 1.0625; 0. 448; -28 and 224 by a scale of 1 / 64.
  std::vector<std::uint8_t> values = {0x7e, 0xb8, 0x00, 0x7e, 0xde, 0x76};
  std::vector<float> scales = {1, 0.015625F};
  bool use_ue8m0 = false;

  QuantizeFp8Args args() {
    QuantizeFp8Args a;
    a.x = TensorView::of(x.data(), kFp32, {2, 3});
    if (!given.empty()) a.scale = TensorView::of(given.data(), kFp32, {2, 1});
    a.values = TensorView::of(values.data(), kFp8, {2, 3});
    a.scales = TensorView::of(scales.data(), kFp32, {2, 1});
    a.group = Fp8Group::kRow;
    a.use_ue8m0 = use_ue8m0;
    return a;
  }
};

TEST(QuantizeFp8Checker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  example.use_ue8m0 = true;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  example.use_ue8m0 = false;
  example.given = example.scales;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(QuantizeFp8Checker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  example.values[1] = 0xb9;  // -1.125, as near as -1
  auto found = check_quantize_fp8(example.args());
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].rule, "values");
  EXPECT_EQ(found[0].array, "values");
  EXPECT_EQ(found[0].position, 1);
  EXPECT_EQ(found[0].expected, -1.0);
  EXPECT_EQ(found[0].found, -1.125);
  EXPECT_EQ(found[0].message, "values: values[0, 1]: expected -1.0 (0xb8), found -1.125 (0xb9)");
  example.values[1] = 0xb8;
  example.scales[1] = std::nextafter(example.scales[1], 1.0F);
  found = check_quantize_fp8(example.args());
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].message,
            "scales: scales[1]: expected 0.015625 (0x3c800000), "
            "found 0.01562500186264515 (0x3c800001)");
}

/// What a change of the outputs written by hand breaks.
template <typename Change>
Rules after(const Change& change) {
  ByHand example;
  change(example);
  return broken_rules(example.args());
}

TEST(QuantizeFp8Checker, EachRuleFindsItsMutations) {
  const Rules both = {"nearest", "values"};
  EXPECT_EQ(after([](ByHand& e) { e.values[0] = 0x7d; }), both);
  EXPECT_EQ(after([](ByHand& e) { e.values[0] = 0x7f; }), both);  // NaN in place of 448
  EXPECT_EQ(after([](ByHand& e) { e.values[1] = 0x38; }), both);  // a sign
  EXPECT_EQ(after([](ByHand& e) { e.values[1] = 0xb7; }), both);
  EXPECT_EQ(after([](ByHand& e) { e.values[2] = 0x80; }), Rules{"values"});  // the sign of a zero
  EXPECT_EQ(after([](ByHand& e) { e.values[2] = 0x01; }), both);
  // The scale of the other token.
  EXPECT_EQ(after([](ByHand& e) { e.scales[1] = 1; }), (Rules{"nearest", "scales"}));
  // Outputs that fit each other, but not the contract: twice the scale.
  EXPECT_EQ(after([](ByHand& e) {
              e.scales[1] *= 2;
              for (int i = 3; i < 6; ++i) e.values[static_cast<std::size_t>(i)] -= 8;
            }),
            (Rules{"scales", "values"}));
  EXPECT_EQ(after([](ByHand& e) {
              e.given = {1, 0.015625F};
              e.scales[0] = 2;
            }),
            (Rules{"nearest", "scales"}));
}

/// Whether the value of one element with a given scale, and no other, is accepted.
void expect_only(float x, float scale, std::uint8_t right) {
  for (int bits = 0; bits < 256; ++bits) {
    auto value = static_cast<std::uint8_t>(bits);
    float written = scale;
    QuantizeFp8Args args;
    args.x = TensorView::of(&x, kFp32, {1, 1});
    args.scale = TensorView::of(&scale, kFp32, {1});
    args.values = TensorView::of(&value, kFp8, {1, 1});
    args.scales = TensorView::of(&written, kFp32, {1});
    EXPECT_EQ(check_quantize_fp8(args).empty(), value == right)
        << x << " / " << scale << ": " << std::hex << bits;
  }
}

TEST(QuantizeFp8Checker, KnowsTheFormat) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  expect_only(0, 1, 0x00);
  expect_only(-0.0F, 1, 0x80);
  expect_only(0x1p-9F, 1, 0x01);
  expect_only(0x1p-10F, 1, 0x00);  // a tie, to even
  expect_only(0x1.8p-9F, 1, 0x02);
  expect_only(0x1.000002p-10F, 1, 0x01);
  expect_only(0x1.ep-7F, 1, 0x08);  // the largest subnormal, 7 * 2^-9, and half a unit
  expect_only(1, 1, 0x38);
  expect_only(447, 1, 0x7e);
  expect_only(460, 1, 0x7e);
  expect_only(1e30F, 1, 0x7e);
  expect_only(-1e30F, 1e-30F, 0xfe);  // overflows float32
  expect_only(kInf, 1, 0x7e);
  expect_only(-kInf, 1, 0xfe);
  expect_only(kNan, 1, 0x7f);
  expect_only(-kNan, 1, 0x7f);
  expect_only(1, kNan, 0x7f);
  expect_only(1, 0, 0x7e);
  expect_only(1, -0.0F, 0xfe);
  expect_only(0, 0, 0x7f);
  expect_only(1, -kInf, 0x80);
  expect_only(kInf, kInf, 0x7f);
  expect_only(3, -2, 0xbc);
  // 1.0625 * 3 is a tie; by a reciprocal, float32(1 / 3), it would be above.
  expect_only(3.1875F, 3, 0x38);
}

/// The scale that is accepted for one element.
void expect_scale(float x, bool use_ue8m0, float right) {
  for (const float scale : {std::nextafter(right, 0.0F), right, std::nextafter(right, kInf)}) {
    std::uint8_t value = 0;
    float written = scale;
    QuantizeFp8Args args;
    args.x = TensorView::of(&x, kFp32, {1, 1});
    args.values = TensorView::of(&value, kFp8, {1, 1});
    args.scales = TensorView::of(&written, kFp32, {1});
    args.use_ue8m0 = use_ue8m0;
    bool is_wrong = false;
    for (const Violation& v : check_quantize_fp8(args)) is_wrong |= v.rule == "scales";
    EXPECT_EQ(is_wrong, scale != right) << x << " " << use_ue8m0 << " " << scale;
  }
}

TEST(QuantizeFp8Checker, KnowsTheScales) {
  constexpr float kLeast = 1e-10F / 448.0F;
  expect_scale(448, false, 1);
  expect_scale(1, false, 1.0F / 448.0F);
  expect_scale(0, false, kLeast);
  expect_scale(1e-11F, false, kLeast);
  expect_scale(1e-40F, false, kLeast);
  expect_scale(kInf, false, kLeast);
  expect_scale(NAN, false, kLeast);
  expect_scale(std::numeric_limits<float>::max(), false,
               std::numeric_limits<float>::max() / 448.0F);
  expect_scale(448, true, 1);
  expect_scale(std::nextafter(448.0F, 500.0F), true, 2);
  expect_scale(224, true, 0.5F);
  expect_scale(1, true, 0x1p-8F);
  expect_scale(0, true, 0x1p-42F);
}

TEST(QuantizeFp8Checker, RefusesWhatACallRefuses) {
  ByHand example;
  example.given = {1, 2};
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    QuantizeFp8Args args = example.args();
    change(&args);
    const auto violations = check_quantize_fp8(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = QuantizeFp8Args;
  expect([](Args* a) { a->x.dtype.code = kDLInt; }, "valid_inputs", "x");
  expect([](Args* a) { a->x.ndim = 1; }, "valid_inputs", "x");
  expect([](Args* a) { a->x.strides[1] = 2; }, "valid_inputs", "x");
  expect([](Args* a) { a->x.strides[0] = 2; }, "valid_inputs", "x");
  expect([](Args* a) { a->x.data = nullptr; }, "valid_inputs", "x");
  expect([](Args* a) { a->group = static_cast<Fp8Group>(4); }, "valid_inputs", "group");
  expect([](Args* a) { a->scale.dtype.bits = 16; }, "valid_inputs", "scale");
  expect([](Args* a) { a->scale.shape[0] = 3; }, "valid_inputs", "scale");
  expect(
      [](Args* a) {
        a->scale = TensorView::of(a->scale.data, kFp32, {1, 2});
      },
      "valid_inputs", "scale");
  expect([](Args* a) { a->use_ue8m0 = true; }, "valid_inputs", "use_ue8m0");
  expect([](Args* a) { a->values.shape[0] = 1; }, "output_sizes", "values");
  expect([](Args* a) { a->values.dtype = kFp32; }, "output_sizes", "values");
  expect([](Args* a) { a->scales.dtype.code = kDLInt; }, "output_sizes", "scales");
  expect(
      [](Args* a) {
        a->scales = TensorView::of(a->scales.data, kFp32, {1, 2});
      },
      "output_sizes", "scales");
  expect([](Args* a) { a->scales = TensorView::of(a->scales.data, kFp32, {3}); }, "output_sizes",
         "scales");
  expect([](Args* a) { a->scales.data = nullptr; }, "output_sizes", "scales");
}

}  // namespace
}  // namespace tessera::contract
