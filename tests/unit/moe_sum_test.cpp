// What is special to moe_sum: bits worked out by hand, the caller's floating-point environment, and
// strides that 32 bits do not hold. What all ops have in common is tested in all_ops.
#include "tessera/moe_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "moe_sum_cases.hpp"
#include "moe_sum_checker.hpp"
#include "sparse_memory.hpp"
#include "tessera/ops.hpp"
#include "unusual_environment.hpp"
#include "weighted_sums.hpp"

namespace tessera::test {
namespace {

/// All implementations that run here. The reference and the portable one run everywhere.
std::vector<std::string> implementations() {
  std::vector<std::string> names;
  std::vector<ImplementationReport> reports;
  const contract::CaseArguments made = contract::find_contract("moe_sum")->arguments("1x8x2048", 1);
  EXPECT_TRUE(find_op("moe_sum")->explain(made.args.get(), Context{}, &reports).ok());
  for (const ImplementationReport& report : reports) {
    if (report.refusal.empty()) names.push_back(report.name);
  }
  EXPECT_GE(names.size(), 2U);
  return names;
}

/// The sums of a row of 83 columns that all hold the same element, by one implementation: the
/// columns cover every position in a vector, and the rest of the row that fills none.
std::vector<std::uint32_t> sums(const std::string& implementation, DLDataType dtype,
                                const std::vector<std::uint32_t>& x, const std::vector<float>& w) {
  constexpr std::int64_t kColumns = 83;
  const auto top_k = static_cast<std::int64_t>(x.size());
  const std::size_t width = dtype.bits / 8U;
  std::vector<std::byte> input(x.size() * kColumns * width);
  std::vector<std::byte> output(kColumns * width, std::byte{0xa5});
  for (std::size_t i = 0; i < x.size() * kColumns; ++i) {
    const std::uint32_t bits = x[i / kColumns];
    const auto half = static_cast<std::uint16_t>(bits);
    std::memcpy(input.data() + i * width, width == 2 ? static_cast<const void*>(&half) : &bits,
                width);
  }
  MoeSumArgs args;
  args.input = TensorView::of(input.data(), dtype, {1, top_k, kColumns});
  if (!w.empty()) args.topk_weights = TensorView::of(w.data(), kFp32, {1, top_k});
  args.output = TensorView::of(output.data(), dtype, {1, kColumns});
  Context context;
  context.implementation = implementation;
  const Status status = moe_sum(args, context);
  EXPECT_TRUE(status.ok()) << status.message();
  std::vector<std::uint32_t> found(kColumns);
  for (std::size_t i = 0; i < found.size(); ++i) {
    std::memcpy(&found[i], output.data() + i * width, width);
  }
  for (const contract::Violation& violation : contract::check_moe_sum(args)) {
    ADD_FAILURE() << violation.message;
  }
  return found;
}

TEST(MoeSum, HasTheBitsThatWereWorkedOutByHand) {
  for (const std::string& implementation : implementations()) {
    for (const SumByHand& example : sums_by_hand()) {
      SCOPED_TRACE(implementation + ": " + example.what);
      for (const std::uint32_t found : sums(implementation, example.dtype, example.x, example.w)) {
        ASSERT_EQ(found, example.expected) << std::hex << found << " for " << example.expected;
      }
    }
  }
}

TEST(MoeSum, DoesNotDependOnTheCallersFloatingPointEnvironment) {
  for (const std::string& implementation : implementations()) {
    for (const SumByHand& example : sums_by_hand()) {
      SCOPED_TRACE(implementation + ": " + example.what);
      const UnusualEnvironment environment;
      const std::uint32_t found = sums(implementation, example.dtype, example.x, example.w)[40];
      EXPECT_TRUE(environment.is_unchanged());
      ASSERT_EQ(found, example.expected);
    }
  }
}

TEST(MoeSum, DoesNotDependOnTheEnvironmentWhereThreadsShareTheWork) {
  contract::MoeSumCase c;
  c.num_tokens = 600;
  c.top_k = 4;
  c.hidden_size = 1021;
  c.format = contract::kFloat32Format;
  c.values = contract::FloatValues::kSubnormal;
  const contract::CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoeSumArgs>();
  std::vector<std::uint32_t> output(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
  args.output.data = output.data();
  Context context;
  context.implementation = "cpu/reference";
  ASSERT_TRUE(moe_sum(args, context).ok());
  const std::vector<std::uint32_t> expected = output;
  for (const std::string& implementation : implementations()) {
    context.implementation = implementation;
    for (const int num_threads : {1, 2, 5}) {
      SCOPED_TRACE(implementation + ", " + std::to_string(num_threads) + " threads");
      context.num_threads = num_threads;
      const UnusualEnvironment environment;
      std::fill(output.begin(), output.end(), 0xa5a5a5a5);
      ASSERT_TRUE(moe_sum(args, context).ok());
      EXPECT_TRUE(environment.is_unchanged());
      EXPECT_TRUE(output == expected);
    }
  }
}

TEST(MoeSum, LeavesWhatLiesBetweenRowsAlone) {
  contract::MoeSumCase c;
  c.num_tokens = 5;
  c.top_k = 3;
  c.hidden_size = 45;
  c.output_gap = 3;
  const contract::CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoeSumArgs>();
  for (const std::string& implementation : implementations()) {
    std::vector<std::uint16_t> output(5 * 48, 0xa5a5);
    args.output.data = output.data();
    Context context;
    context.implementation = implementation;
    ASSERT_TRUE(moe_sum(args, context).ok());
    EXPECT_TRUE(contract::check_moe_sum(args).empty());
    for (std::size_t row = 0; row < output.size(); row += 48) {
      for (std::size_t i = row + 45; i < row + 48; ++i) {
        EXPECT_EQ(output[i], 0xa5a5) << implementation << " " << i;
      }
    }
  }
}

TEST(MoeSum, ReachesRowsThatLieMoreThan2To32ElementsApart) {
  constexpr std::int64_t kTokens = 3;
  constexpr std::int64_t kSlots = 2;
  constexpr std::int64_t kColumns = 40;
  constexpr std::int64_t kSlotStride = (std::int64_t{1} << 31) + 24;
  constexpr std::int64_t kTokenStride = 2 * kSlotStride + 8;
  constexpr std::int64_t kOutputStride = (std::int64_t{1} << 32) + 56;
  const SparseMemory input(sizeof(float) * kTokens * kTokenStride);
  const SparseMemory output(sizeof(float) * kTokens * kOutputStride);
  if (!input.is_there() || !output.is_there()) GTEST_SKIP() << "no such address range";
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t s = 0; s < kSlots; ++s) {
      for (std::int64_t h = 0; h < kColumns; ++h) {
        input.floats()[t * kTokenStride + s * kSlotStride + h] = static_cast<float>(t + s * h);
      }
    }
  }
  MoeSumArgs args;
  args.input = contract::strided(TensorView::of(input.floats(), kFp32, {kTokens, kSlots, kColumns}),
                                 {kTokenStride, kSlotStride, 1});
  args.output = contract::strided(TensorView::of(output.floats(), kFp32, {kTokens, kColumns}),
                                  {kOutputStride, 1});
  for (const std::string& implementation : implementations()) {
    Context context;
    context.implementation = implementation;
    const Status status = moe_sum(args, context);
    ASSERT_TRUE(status.ok()) << status.message();
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t h = 0; h < kColumns; ++h) {
        float& found = output.floats()[t * kOutputStride + h];
        ASSERT_EQ(found, static_cast<float>(2 * t + h)) << implementation << " " << t << " " << h;
        found = -1;
      }
    }
  }
}

TEST(MoeSum, RefusesTokensWithoutASlot) {
  MoeSumArgs args;
  args.input = TensorView::of(nullptr, kFp32, {2, 0, 8});
  std::vector<float> output(16, 7.0F);
  args.output = TensorView::of(output.data(), kFp32, {2, 8});
  const Status status = moe_sum(args, Context{});
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(),
            "moe_sum: input.shape[1]: expected an integer in [1, 2147483647], got 0");
  EXPECT_EQ(output, std::vector<float>(16, 7.0F));
}

TEST(MoeSum, RefusesAnotherDataTypeOfTheOutput) {
  std::vector<float> input(16);
  std::vector<std::uint16_t> output(16);
  MoeSumArgs args;
  args.input = TensorView::of(input.data(), kFp32, {2, 1, 8});
  args.output = TensorView::of(output.data(), kBf16, {2, 8});
  const Status status = moe_sum(args, Context{});
  EXPECT_EQ(status.code(), StatusCode::kInvalidType);
  EXPECT_EQ(status.message(),
            "moe_sum: output.dtype: expected float32, as input has, got bfloat16");
}

TEST(MoeSum, RefusesRowsFurtherApartThanAddressesCanBe) {
  // One below this, rows of 4 bytes are less than 2^63 bytes apart; no memory has either.
  constexpr std::int64_t kStride = (std::int64_t{1} << 61) - 1;
  std::vector<float> input(2);
  std::vector<float> output(2);
  MoeSumArgs args;
  args.input = TensorView::of(input.data(), kFp32, {2, 1, 1});
  args.output = contract::strided(TensorView::of(output.data(), kFp32, {2, 1}), {kStride, 1});
  const Status status = moe_sum(args, Context{});
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(),
            "moe_sum: output.shape: expected an end within the address space, got more elements");
}

TEST(MoeSum, RefusesSlotsThatPassTokens) {
  std::vector<float> input(2 * 3 * 8);
  std::vector<float> output(3 * 8);
  MoeSumArgs args;
  args.input = contract::strided(TensorView::of(input.data(), kFp32, {3, 2, 8}), {8, 24, 1});
  args.output = TensorView::of(output.data(), kFp32, {3, 8});
  const Status status = moe_sum(args, Context{});
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(),
            "moe_sum: input: expected contiguous rows that share no memory, "
            "got strides [8, 24, 1] of shape [3, 2, 8]");
}

}  // namespace
}  // namespace tessera::test
