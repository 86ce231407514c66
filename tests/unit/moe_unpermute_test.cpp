// What is special to moe_unpermute: bits worked out by hand, pairs that do not count, agreement
// with moe_sum, the caller's floating-point environment, and strides that 32 bits do not hold. What
// all ops have in common is tested in all_ops.
#include "tessera/moe_unpermute.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "moe_sum_cases.hpp"
#include "moe_unpermute_cases.hpp"
#include "moe_unpermute_checker.hpp"
#include "sparse_memory.hpp"
#include "tessera/moe_sum.hpp"
#include "tessera/ops.hpp"
#include "unusual_environment.hpp"
#include "weighted_sums.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr std::int32_t kSmallest = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kLargest = std::numeric_limits<std::int32_t>::max();
/// Covers every position in a vector, and the rest of the row that fills none.
constexpr std::int64_t kColumns = 83;

/// All implementations that run here. The reference and the portable one run everywhere.
std::vector<std::string> implementations() {
  std::vector<std::string> names;
  std::vector<ImplementationReport> reports;
  const contract::CaseArguments made =
      contract::find_contract("moe_unpermute")->arguments("16x8x2048", 1);
  EXPECT_TRUE(find_op("moe_unpermute")->explain(made.args.get(), Context{}, &reports).ok());
  for (const ImplementationReport& report : reports) {
    if (report.refusal.empty()) names.push_back(report.name);
  }
  EXPECT_GE(names.size(), 2U);
  return names;
}

/// Runs one implementation, and expects that the checker accepts the output.
void run(const std::string& implementation, const MoeUnpermuteArgs& args) {
  Context context;
  context.implementation = implementation;
  const Status status = moe_unpermute(args, context);
  EXPECT_TRUE(status.ok()) << status.message();
  for (const contract::Violation& violation : contract::check_moe_unpermute(args)) {
    ADD_FAILURE() << violation.message;
  }
}

/// The sums of one token by one implementation. All elements of a row have the same bits, those in
/// `rows`. Empty weights are not given.
std::vector<std::uint32_t> sums(const std::string& implementation, DLDataType dtype,
                                const std::vector<std::uint32_t>& rows,
                                const std::vector<std::int32_t>& inverse,
                                const std::vector<float>& weights) {
  const auto top_k = static_cast<std::int64_t>(inverse.size());
  const std::size_t width = dtype.bits / 8U;
  std::vector<std::byte> elements(rows.size() * kColumns * width);
  std::vector<std::byte> output(kColumns * width, std::byte{0xa5});
  for (std::size_t i = 0; i < rows.size() * kColumns; ++i) {
    const std::uint32_t bits = rows[i / kColumns];
    const auto half = static_cast<std::uint16_t>(bits);
    std::memcpy(elements.data() + i * width, width == 2 ? static_cast<const void*>(&half) : &bits,
                width);
  }
  MoeUnpermuteArgs args;
  args.rows =
      TensorView::of(elements.data(), dtype, {static_cast<std::int64_t>(rows.size()), kColumns});
  args.inverse = TensorView::of(inverse.data(), kInt32, {1, top_k});
  if (!weights.empty()) args.topk_weights = TensorView::of(weights.data(), kFp32, {1, top_k});
  args.output = TensorView::of(output.data(), dtype, {1, kColumns});
  run(implementation, args);
  std::vector<std::uint32_t> found(kColumns);
  for (std::size_t i = 0; i < found.size(); ++i) {
    std::memcpy(&found[i], output.data() + i * width, width);
  }
  return found;
}

/// The same for an example whose rows are in the opposite order, between rows of NaNs, and whose
/// slots are between pairs that do not count and have NaNs as weights.
std::vector<std::uint32_t> scattered_sums(const std::string& implementation,
                                          const SumByHand& example) {
  const std::uint32_t nan = example.dtype.bits == 32 ? 0x7fffffff : 0x7fff;
  const auto num_slots = static_cast<std::int32_t>(example.x.size());
  const std::int32_t not_rows[] = {-1, 2 * num_slots + 1, kSmallest, kLargest};
  std::vector<std::uint32_t> rows = {nan};
  std::vector<std::int32_t> inverse = {-1};
  std::vector<float> weights = {NAN};
  for (std::int32_t slot = 0; slot < num_slots; ++slot) {
    rows.insert(rows.end(), {example.x[static_cast<std::size_t>(num_slots - 1 - slot)], nan});
    inverse.insert(inverse.end(), {2 * (num_slots - 1 - slot) + 1, not_rows[slot % 4]});
    if (!example.w.empty()) {
      weights.insert(weights.end(), {example.w[static_cast<std::size_t>(slot)], NAN});
    }
  }
  if (example.w.empty()) weights.clear();
  return sums(implementation, example.dtype, rows, inverse, weights);
}

TEST(MoeUnpermute, HasTheBitsThatWereWorkedOutByHand) {
  for (const std::string& implementation : implementations()) {
    for (const SumByHand& example : sums_by_hand()) {
      SCOPED_TRACE(implementation + ": " + example.what);
      for (const std::uint32_t found : scattered_sums(implementation, example)) {
        ASSERT_EQ(found, example.expected) << std::hex << found << " for " << example.expected;
      }
    }
  }
}

TEST(MoeUnpermute, DoesNotDependOnTheCallersFloatingPointEnvironment) {
  for (const std::string& implementation : implementations()) {
    for (const SumByHand& example : sums_by_hand()) {
      SCOPED_TRACE(implementation + ": " + example.what);
      const UnusualEnvironment environment;
      const std::uint32_t found = scattered_sums(implementation, example)[40];
      EXPECT_TRUE(environment.is_unchanged());
      ASSERT_EQ(found, example.expected);
    }
  }
}

TEST(MoeUnpermute, TheSumOfNoRowsIsPositiveZero) {
  const std::vector<std::int32_t> remote = {-1, 1, kSmallest, kLargest, -1, -1, -1, -1, -1};
  for (const std::string& implementation : implementations()) {
    for (const DLDataType dtype : {kFp16, kBf16, kFp32}) {
      const std::uint32_t minus_zero = dtype.bits == 32 ? 0x80000000 : 0x8000;
      SCOPED_TRACE(implementation + ", " + std::to_string(dtype.bits) + " bits");
      const std::vector<std::uint32_t> zeros(kColumns);
      EXPECT_EQ(sums(implementation, dtype, {minus_zero}, remote, {}), zeros);
      EXPECT_EQ(sums(implementation, dtype, {minus_zero}, remote, std::vector<float>(9, NAN)),
                zeros);
      EXPECT_EQ(sums(implementation, dtype, {}, {0, -1}, {}), zeros);
      // One that counts, among others that do not, keeps its sign.
      const std::vector<std::uint32_t> signs(kColumns, minus_zero);
      EXPECT_EQ(sums(implementation, dtype, {minus_zero}, {-1, 0, 1}, {}), signs);
    }
  }
}

TEST(MoeUnpermute, ARowMayCountInSeveralPairs) {
  for (const std::string& implementation : implementations()) {
    const auto found = sums(implementation, kFp32, {0x3f800000, 0x40000000}, {1, 0, 1, 1},
                            {1.0F, 10.0F, 100.0F, 1000.0F});
    // 2 + 10 + 200 + 2000
    EXPECT_EQ(found, std::vector<std::uint32_t>(kColumns, 0x450a4000)) << implementation;
  }
}

/// moe_sum on rows that are in the order of the tokens, and this op on the same rows.
TEST(MoeUnpermute, AgreesWithMoeSum) {
  for (const std::int64_t top_k : {1, 8, 33}) {
    contract::MoeSumCase c;
    c.num_tokens = 11;
    c.top_k = top_k;
    c.hidden_size = 301;
    c.weighted = true;
    c.values = contract::FloatValues::kAnyBits;
    const contract::CaseArguments made = make_arguments(c, 1);
    auto& direct = made.as<MoeSumArgs>();
    std::vector<std::uint16_t> expected(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
    direct.output.data = expected.data();
    ASSERT_TRUE(moe_sum(direct, Context{}).ok());

    std::vector<std::int32_t> inverse(static_cast<std::size_t>(c.num_tokens * top_k));
    std::iota(inverse.begin(), inverse.end(), 0);
    MoeUnpermuteArgs args;
    args.rows = TensorView::of(direct.input.data, kBf16, {c.num_tokens * top_k, c.hidden_size});
    args.topk_weights = direct.topk_weights;
    args.inverse = TensorView::of(inverse.data(), kInt32, {c.num_tokens, top_k});
    for (const std::string& implementation : implementations()) {
      std::vector<std::uint16_t> output(expected.size(), 0xa5a5);
      args.output = TensorView::of(output.data(), kBf16, {c.num_tokens, c.hidden_size});
      run(implementation, args);
      EXPECT_TRUE(output == expected) << implementation << ", top_k " << top_k;
    }
  }
}

TEST(MoeUnpermute, HasTheSameBitsOnAnyNumberOfThreads) {
  contract::MoeUnpermuteCase c;
  c.num_rows = 1500;
  c.num_tokens = 600;
  c.top_k = 4;
  c.hidden_size = 1021;
  c.format = contract::kFloat32Format;
  c.remote = 3;
  c.values = contract::FloatValues::kSubnormal;
  const contract::CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoeUnpermuteArgs>();
  std::vector<std::uint32_t> output(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
  args.output.data = output.data();
  run("cpu/reference", args);
  const std::vector<std::uint32_t> expected = output;
  Context context;
  for (const std::string& implementation : implementations()) {
    context.implementation = implementation;
    for (const int num_threads : {1, 2, 5}) {
      SCOPED_TRACE(implementation + ", " + std::to_string(num_threads) + " threads");
      context.num_threads = num_threads;
      const UnusualEnvironment environment;
      std::fill(output.begin(), output.end(), 0xa5a5a5a5);
      ASSERT_TRUE(moe_unpermute(args, context).ok());
      EXPECT_TRUE(environment.is_unchanged());
      EXPECT_TRUE(output == expected);
    }
  }
}

TEST(MoeUnpermute, ReachesRowsThatLieMoreThan2To32ElementsApart) {
  constexpr std::int64_t kNumRows = 4;
  constexpr std::int64_t kTokens = 3;
  constexpr std::int64_t kRowStride = (std::int64_t{1} << 32) + 24;
  constexpr std::int64_t kOutputStride = (std::int64_t{1} << 32) + 56;
  const SparseMemory rows(sizeof(float) * kNumRows * kRowStride);
  const SparseMemory output(sizeof(float) * kTokens * kOutputStride);
  if (!rows.is_there() || !output.is_there()) GTEST_SKIP() << "no such address range";
  for (std::int64_t row = 0; row < kNumRows; ++row) {
    for (std::int64_t h = 0; h < kColumns; ++h) {
      rows.floats()[row * kRowStride + h] = static_cast<float>(100 * row + h);
    }
  }
  const std::vector<std::int32_t> inverse = {3, 1, 0, 2, -1, 3};
  MoeUnpermuteArgs args;
  args.rows = contract::strided(TensorView::of(rows.floats(), kFp32, {kNumRows, kColumns}),
                                {kRowStride, 1});
  args.inverse = TensorView::of(inverse.data(), kInt32, {kTokens, 2});
  args.output = contract::strided(TensorView::of(output.floats(), kFp32, {kTokens, kColumns}),
                                  {kOutputStride, 1});
  for (const std::string& implementation : implementations()) {
    run(implementation, args);
    for (std::int64_t h = 0; h < kColumns; ++h) {
      const float expected[] = {static_cast<float>(400 + 2 * h), static_cast<float>(200 + 2 * h),
                                static_cast<float>(300 + h)};
      for (std::int64_t t = 0; t < kTokens; ++t) {
        float& found = output.floats()[t * kOutputStride + h];
        ASSERT_EQ(found, expected[t]) << implementation << " " << t << " " << h;
        found = -1;
      }
    }
  }
}

/// Two tokens of two slots, four rows of eight columns.
struct Refused {
  std::vector<float> rows = std::vector<float>(32);
  std::vector<std::int32_t> inverse = {0, 1, 2, 3};
  std::vector<float> output = std::vector<float>(16, 7.0F);
  MoeUnpermuteArgs args;

  Refused() {
    args.rows = TensorView::of(rows.data(), kFp32, {4, 8});
    args.inverse = TensorView::of(inverse.data(), kInt32, {2, 2});
    args.output = TensorView::of(output.data(), kFp32, {2, 8});
  }

  void expect(StatusCode code, const std::string& message) const {
    const Status status = moe_unpermute(args, Context{});
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message(), "moe_unpermute: " + message);
    EXPECT_EQ(output, std::vector<float>(16, 7.0F));
  }
};

TEST(MoeUnpermute, RefusesTokensWithoutASlot) {
  Refused call;
  call.args.inverse = TensorView::of(nullptr, kInt32, {2, 0});
  call.expect(StatusCode::kInvalidValue,
              "inverse.shape[1]: expected an integer in [1, 2147483647], got 0");
}

TEST(MoeUnpermute, RefusesANumberOfRowsOf64Bits) {
  Refused call;
  call.args.inverse = TensorView::of(call.rows.data(), {kDLInt, 64, 1}, {2, 2});
  call.expect(StatusCode::kInvalidType, "inverse.dtype: expected int32, got int64");
}

TEST(MoeUnpermute, RefusesWeightsOfOtherPairs) {
  Refused call;
  call.args.topk_weights = TensorView::of(call.rows.data(), kFp32, {2, 3});
  call.expect(StatusCode::kInvalidValue, "topk_weights.shape[1]: expected 2, got 3");
}

TEST(MoeUnpermute, RefusesAnotherDataTypeOfTheOutput) {
  Refused call;
  call.args.output.dtype = kBf16;
  call.expect(StatusCode::kInvalidType,
              "output.dtype: expected float32, as rows has, got bfloat16");
}

TEST(MoeUnpermute, RefusesAnOutputOfOtherTokens) {
  Refused call;
  call.args.inverse = TensorView::of(call.inverse.data(), kInt32, {1, 4});
  call.expect(StatusCode::kInvalidValue, "output.shape[0]: expected 1, got 2");
}

}  // namespace
}  // namespace tessera::test
