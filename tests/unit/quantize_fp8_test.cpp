// What is special to quantize_fp8: bits worked out by hand, the caller's floating-point
// environment, strides that 32 bits do not hold, and shapes of scales. What all ops have in common
// is tested in all_ops.
#include "tessera/quantize_fp8.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "quantize_fp8_cases.hpp"
#include "quantize_fp8_checker.hpp"
#include "sparse_memory.hpp"
#include "tessera/ops.hpp"
#include "unusual_environment.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp16{kDLFloat, 16, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

/// All implementations that run here. The reference and the portable one run everywhere.
std::vector<std::string> implementations() {
  std::vector<std::string> names;
  std::vector<ImplementationReport> reports;
  const auto made = contract::find_contract("quantize_fp8")->arguments("1x7168/1x128", 1);
  EXPECT_TRUE(find_op("quantize_fp8")->explain(made.args.get(), Context{}, &reports).ok());
  for (const ImplementationReport& report : reports) {
    if (report.refusal.empty()) names.push_back(report.name);
  }
  EXPECT_GE(names.size(), 2U);
  return names;
}

/// The outputs of one row.
struct Row {
  std::vector<std::uint8_t> values;
  float scale = 0;
};

Row quantize_row(const std::string& implementation, DLDataType dtype, const void* x,
                 std::int64_t num_columns, const float* scale, bool use_ue8m0 = false) {
  Row row;
  row.values.assign(static_cast<std::size_t>(num_columns), 0xa5);
  QuantizeFp8Args args;
  args.x = TensorView::of(x, dtype, {1, num_columns});
  if (scale != nullptr) args.scale = TensorView::of(scale, kFp32, {1, 1});
  args.values = TensorView::of(row.values.data(), kFp8, {1, num_columns});
  args.scales = TensorView::of(&row.scale, kFp32, {1, 1});
  args.group = Fp8Group::kRow;
  args.use_ue8m0 = use_ue8m0;
  Context context;
  context.implementation = implementation;
  const Status status = quantize_fp8(args, context);
  EXPECT_TRUE(status.ok()) << status.message();
  for (const contract::Violation& violation : contract::check_quantize_fp8(args)) {
    ADD_FAILURE() << violation.message;
  }
  return row;
}

struct ByHand {
  float x;
  float scale;
  std::uint8_t expected;
};

constexpr ByHand kByHand[] = {
    {0, 1, 0x00},
    {-0.0F, 1, 0x80},
    {1, 1, 0x38},
    {-1.125F, 1, 0xb9},
    {448, 1, 0x7e},
    {-448, 1, 0xfe},
    // Half way between two values: to the even mantissa.
    {1.0625F, 1, 0x38},
    {1.1875F, 1, 0x3a},
    {0x1.100002p0F, 1, 0x39},
    {432, 1, 0x7e},
    {1.9375F, 1, 0x40},
    // Subnormals are multiples of 2^-9; 2^-6 is the smallest normal value.
    {0x1p-9F, 1, 0x01},
    {0x1p-10F, 1, 0x00},
    {0x1.000002p-10F, 1, 0x01},
    {0x1.8p-9F, 1, 0x02},
    {0x1.cp-7F, 1, 0x07},
    {0x1.ep-7F, 1, 0x08},
    {0x1p-6F, 1, 0x08},
    {-0x1p-20F, 1, 0x80},
    {0x1p-149F, 1, 0x00},
    {0x1p-149F, 0x1p-149F, 0x38},
    {0x1p-140F, 0x1p-149F, 0x7e},
    {0x1.8p-140F, 0x1p-140F, 0x3c},
    // Larger values saturate; without that 464 would be a tie with a NaN.
    {449, 1, 0x7e},
    {464, 1, 0x7e},
    {480, 1, 0x7e},
    {-3e38F, 1, 0xfe},
    {3e38F, 1e-38F, 0x7e},
    {kInf, 1, 0x7e},
    {-kInf, 1, 0xfe},
    {kInf, kInf, 0x7f},
    {std::numeric_limits<float>::quiet_NaN(), 1, 0x7f},
    {-std::numeric_limits<float>::quiet_NaN(), 1, 0x7f},
    {std::numeric_limits<float>::signaling_NaN(), 1, 0x7f},
    {1, std::numeric_limits<float>::quiet_NaN(), 0x7f},
    {1, 0, 0x7e},
    {-1, 0, 0xfe},
    {1, -0.0F, 0xfe},
    {0, 0, 0x7f},
    {-1, kInf, 0x80},
    {3, -2, 0xbc},
    // A tie, which float32(1 / 3) would miss: a division, not a product with a reciprocal.
    {3.1875F, 3, 0x38},
    {3.5625F, 3, 0x3a},
    {13.8125F, 13, 0x38},
};

TEST(QuantizeFp8, HasTheBitsThatWereWorkedOutByHand) {
  // As many columns as cover every position in a vector, and the rest of the row that fills none.
  constexpr std::int64_t kColumns = 83;
  for (const std::string& implementation : implementations()) {
    for (const ByHand& example : kByHand) {
      SCOPED_TRACE(implementation + ": " + std::to_string(example.x) + " / " +
                   std::to_string(example.scale));
      const std::vector<float> x(kColumns, example.x);
      const UnusualEnvironment environment;
      const Row row = quantize_row(implementation, kFp32, x.data(), kColumns, &example.scale);
      EXPECT_TRUE(environment.is_unchanged());
      EXPECT_EQ(std::bit_cast<std::uint32_t>(row.scale),
                std::bit_cast<std::uint32_t>(example.scale));
      for (const std::uint8_t found : row.values) {
        ASSERT_EQ(found, example.expected) << std::hex << int{found};
      }
    }
  }
}

TEST(QuantizeFp8, ScalesFollowTheLargestFiniteMagnitude) {
  struct Example {
    std::vector<float> x;
    float scale;
    float power_of_two;
  };
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const Example examples[] = {
      {{1, -448, 3}, 1, 1},
      {{1, 2, 3}, 3.0F / 448.0F, 0x1p-7F},
      {{448.00003F}, 448.00003F / 448.0F, 2},
      {{224}, 0.5F, 0.5F},
      {{3, kInf, -kInf, kNan}, 3.0F / 448.0F, 0x1p-7F},
      {{0, -0.0F}, 1e-10F / 448.0F, 0x1p-42F},
      {{kInf, kNan}, 1e-10F / 448.0F, 0x1p-42F},
      {{1e-11F}, 1e-10F / 448.0F, 0x1p-42F},
      {{0x1p-149F}, 1e-10F / 448.0F, 0x1p-42F},
      {{-std::numeric_limits<float>::max()}, std::numeric_limits<float>::max() / 448.0F, 0x1p120F},
  };
  for (const std::string& implementation : implementations()) {
    for (const Example& example : examples) {
      const auto n = static_cast<std::int64_t>(example.x.size());
      const void* const x = example.x.data();
      EXPECT_EQ(quantize_row(implementation, kFp32, x, n, nullptr).scale, example.scale);
      EXPECT_EQ(quantize_row(implementation, kFp32, x, n, nullptr, true).scale,
                example.power_of_two);
    }
  }
}

TEST(QuantizeFp8, QuantisesEveryNumberOf16BitsAsTheContractSays) {
  std::vector<std::uint16_t> x(65536);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint16_t>(i);
  for (const std::string& implementation : implementations()) {
    for (const DLDataType dtype : {kFp16, kBf16}) {
      for (const float scale : {1.0F, 0.3F, 0x1p-20F, 1e-30F, 7.0F}) {
        quantize_row(implementation, dtype, x.data(), 65536, &scale);
      }
      quantize_row(implementation, dtype, x.data(), 65536, nullptr);
    }
  }
}

TEST(QuantizeFp8, DoesNotDependOnTheEnvironmentWhereThreadsShareTheWork) {
  for (const Fp8Group group :
       {Fp8Group::kTensor, Fp8Group::kRow, Fp8Group::k1x128, Fp8Group::k128x128}) {
    contract::QuantizeFp8Case c;
    c.num_tokens = 700;
    c.hidden_size = 1021;
    c.group = group;
    c.format = contract::kFloat32Format;
    c.values = contract::FloatValues::kSubnormal;
    c.scales = contract::Fp8Scales::kAnyBits;
    for (const bool is_given : {false, true}) {
      if (!is_given) c.scales = contract::Fp8Scales::kComputed;
      const contract::CaseArguments made = make_arguments(c, 1);
      auto& args = made.as<QuantizeFp8Args>();
      std::vector<std::uint8_t> values(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
      std::vector<float> scales(static_cast<std::size_t>(args.scales.num_elements));
      args.values.data = values.data();
      args.scales.data = scales.data();
      for (const std::string& implementation : implementations()) {
        for (const int num_threads : {1, 2, 5}) {
          SCOPED_TRACE(implementation + ", " + std::to_string(num_threads) + " threads");
          Context context;
          context.implementation = implementation;
          context.num_threads = num_threads;
          std::fill(values.begin(), values.end(), 0xa5);
          {
            const UnusualEnvironment environment;
            ASSERT_TRUE(quantize_fp8(args, context).ok());
            EXPECT_TRUE(environment.is_unchanged());
          }
          for (const contract::Violation& v : contract::check_quantize_fp8(args)) {
            ADD_FAILURE() << v.message;
          }
        }
      }
    }
  }
}

TEST(QuantizeFp8, ReachesRowsThatLieMoreThan2To32ElementsApart) {
  constexpr std::int64_t kTokens = 3;
  constexpr std::int64_t kColumns = 140;
  constexpr std::int64_t kStride = (std::int64_t{1} << 32) + 56;
  const SparseMemory input(sizeof(float) * kTokens * kStride);
  const SparseMemory output(sizeof(float) * kTokens * kStride);
  if (!input.is_there() || !output.is_there()) GTEST_SKIP() << "no such address range";
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t h = 0; h < kColumns; ++h) {
      input.floats()[t * kStride + h] = static_cast<float>(t + h);
    }
  }
  for (const Fp8Group group :
       {Fp8Group::kTensor, Fp8Group::kRow, Fp8Group::k1x128, Fp8Group::k128x128}) {
    std::vector<float> scales(6);
    QuantizeFp8Args args;
    args.group = group;
    args.x =
        contract::strided(TensorView::of(input.floats(), kFp32, {kTokens, kColumns}), {kStride, 1});
    args.values =
        contract::strided(TensorView::of(output.floats(), kFp8, {kTokens, kColumns}), {kStride, 1});
    const bool is_cut = group >= Fp8Group::k1x128;
    const bool is_per_row = group == Fp8Group::kRow || group == Fp8Group::k1x128;
    args.scales = TensorView::of(scales.data(), kFp32, {is_per_row ? kTokens : 1, is_cut ? 2 : 1});
    for (const std::string& implementation : implementations()) {
      Context context;
      context.implementation = implementation;
      const Status status = quantize_fp8(args, context);
      ASSERT_TRUE(status.ok()) << status.message();
      for (const contract::Violation& v : contract::check_quantize_fp8(args)) {
        ADD_FAILURE() << v.message;
      }
    }
  }
}

/// The message of a call that must write nothing.
class Refusal {
 public:
  QuantizeFp8Args args;

  explicit Refusal(Fp8Group group) {
    args.group = group;
    args.x = TensorView::of(x_.data(), kFp32, {2, 256});
    args.values = TensorView::of(values_.data(), kFp8, {2, 256});
    args.scales = TensorView::of(scales.data(), kFp32, {2, 2});
  }

  std::string message() const {
    const Status status = quantize_fp8(args, Context{});
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(values_, std::vector<std::uint8_t>(512, 0xa5));
    EXPECT_EQ(scales, std::vector<float>(16, 7.0F));
    return status.message();
  }

  std::vector<float> scales = std::vector<float>(16, 7.0F);
  std::vector<float> given = std::vector<float>(16, 1.0F);

 private:
  std::vector<float> x_ = std::vector<float>(512, 1.0F);
  std::vector<std::uint8_t> values_ = std::vector<std::uint8_t>(512, 0xa5);
};

TEST(QuantizeFp8, RefusesScalesOfAnotherShape) {
  Refusal wrong_number(Fp8Group::kRow);
  EXPECT_EQ(wrong_number.message(), "quantize_fp8: scales.num_elements: expected 2, got 4");
  Refusal transposed(Fp8Group::kRow);
  transposed.args.scales = TensorView::of(transposed.scales.data(), kFp32, {1, 2});
  EXPECT_EQ(transposed.message(), "quantize_fp8: scales.shape: expected [2, 1], got [1, 2]");
  Refusal three_axes(Fp8Group::k1x128);
  three_axes.args.scales = TensorView::of(three_axes.scales.data(), kFp32, {2, 2, 1});
  EXPECT_EQ(three_axes.message(), "quantize_fp8: scales.shape: expected [2, 2], got [2, 2, 1]");
  Refusal blocks(Fp8Group::k128x128);
  blocks.args.scales = TensorView::of(blocks.scales.data(), kFp32, {1, 2});
  blocks.args.scale = TensorView::of(blocks.given.data(), kFp32, {2, 1});
  EXPECT_EQ(blocks.message(), "quantize_fp8: scale.shape: expected [1, 2], got [2, 1]");
  Refusal tensor(Fp8Group::kTensor);
  EXPECT_EQ(tensor.message(), "quantize_fp8: scales.num_elements: expected 1, got 4");
}

TEST(QuantizeFp8, OneScaleMayHaveAnyAxes) {
  Refusal call(Fp8Group::kTensor);
  for (const auto& shape : {std::initializer_list<std::int64_t>{}, {1}, {1, 1}}) {
    call.args.scale = TensorView::of(call.given.data(), kFp32, shape);
    call.args.scales = TensorView::of(call.scales.data(), kFp32, shape);
    const Status status = quantize_fp8(call.args, Context{});
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(call.scales[0], 1);
  }
}

TEST(QuantizeFp8, ScalesMayHaveOneAxis) {
  Refusal call(Fp8Group::k1x128);
  call.args.scale = TensorView::of(call.given.data(), kFp32, {4});
  call.args.scales = TensorView::of(call.scales.data(), kFp32, {4});
  const Status status = quantize_fp8(call.args, Context{});
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(std::vector<float>(call.scales.begin(), call.scales.begin() + 4),
            std::vector<float>(4, 1.0F));
  EXPECT_TRUE(contract::check_quantize_fp8(call.args).empty());
}

TEST(QuantizeFp8, RefusesPowersOfTwoOfGivenScales) {
  Refusal call(Fp8Group::k1x128);
  call.args.scale = TensorView::of(call.given.data(), kFp32, {2, 2});
  call.args.use_ue8m0 = true;
  EXPECT_EQ(call.message(),
            "quantize_fp8: use_ue8m0: expected false where scale is given, got true");
}

}  // namespace
}  // namespace tessera::test
