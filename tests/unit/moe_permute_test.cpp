// What is special to moe_permute: outputs worked out by hand, rows that no call writes, strides
// that 32 bits do not hold, and its own messages. What all ops have in common is tested in all_ops.
#include "tessera/moe_permute.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "moe_permute_cases.hpp"
#include "moe_permute_checker.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};

const std::vector<std::string>& implementations() {
  static const std::vector<std::string> kAll = {"cpu/tokens", "cpu/reference"};
  return kAll;
}

/// A call whose outputs have the right sizes, filled with 0xa5.
template <typename T>
struct Call {
  Call(DLDataType dtype, std::vector<T> values, std::vector<std::int64_t> experts,
       std::int64_t top_k, std::int64_t num_experts, std::int64_t block_size)
      : x(std::move(values)), ids(std::move(experts)) {
    const auto num_tokens = static_cast<std::int64_t>(ids.size()) / top_k;
    const auto hidden_size = num_tokens == 0 ? 1 : static_cast<std::int64_t>(x.size()) / num_tokens;
    args.x = TensorView::of(x.data(), dtype, {num_tokens, hidden_size});
    args.topk_ids = TensorView::of(ids.data(), kInt64, {num_tokens, top_k});
    args.num_experts = num_experts;
    args.block_size = block_size;
    MoePermuteSizes sizes;
    EXPECT_TRUE(moe_permute_sizes(args, Context{}, &sizes).ok());
    rows.assign(static_cast<std::size_t>(sizes.capacity * hidden_size), kUnwritten);
    expert_offsets.assign(static_cast<std::size_t>(num_experts + 1), -7);
    inverse.assign(ids.size(), -7);
    args.rows = TensorView::of(rows.data(), dtype, {sizes.capacity, hidden_size});
    args.expert_offsets = TensorView::of(expert_offsets.data(), kInt32, {num_experts + 1});
    args.inverse = TensorView::of(inverse.data(), kInt32, {num_tokens, top_k});
  }

  Status run(const std::string& implementation) {
    Context context;
    context.implementation = implementation;
    MoePermuteSizes sizes;
    if (Status s = moe_permute_sizes(args, context, &sizes); !s.ok()) return s;
    std::vector<std::byte> workspace(sizes.workspace_bytes);
    context.workspace = workspace;
    const Status status = moe_permute(args, context);
    for (const contract::Violation& violation : contract::check_moe_permute(args)) {
      ADD_FAILURE() << violation.message;
    }
    return status;
  }

  static constexpr T kUnwritten = static_cast<T>(0xa5a5a5a5);

  std::vector<T> x;
  std::vector<std::int64_t> ids;
  std::vector<T> rows;
  std::vector<std::int32_t> expert_offsets;
  std::vector<std::int32_t> inverse;
  MoePermuteArgs args;
};

TEST(MoePermute, OrdersRowsByExpertAndPair) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint16_t> call(kBf16, {11, 12, 21, 22, 31, 32}, {2, 0, 0, 2, 2, 1}, 2, 3, 1);
    ASSERT_TRUE(call.run(implementation).ok());
    EXPECT_EQ(call.rows,
              (std::vector<std::uint16_t>{11, 12, 21, 22, 31, 32, 11, 12, 21, 22, 31, 32}));
    EXPECT_EQ(call.expert_offsets, (std::vector<std::int32_t>{0, 2, 3, 6}));
    EXPECT_EQ(call.inverse, (std::vector<std::int32_t>{3, 0, 1, 4, 5, 2}));
  }
}

TEST(MoePermute, PadsBlocksWithZerosAndLeavesTheRestAlone) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    // Four pairs count: one of expert 3 and three of expert 1, in blocks of two.
    Call<std::uint32_t> call(kFp32, {1, 2, 3}, {1, -1, 3, 1, 1, 4}, 2, 4, 2);
    ASSERT_TRUE(call.run(implementation).ok());
    const std::uint32_t unwritten = 0xa5a5a5a5;
    EXPECT_EQ(call.rows, (std::vector<std::uint32_t>{1, 2, 3, 0, 2, 0, unwritten, unwritten,
                                                     unwritten, unwritten}));
    EXPECT_EQ(call.expert_offsets, (std::vector<std::int32_t>{0, 0, 4, 4, 6}));
    EXPECT_EQ(call.inverse, (std::vector<std::int32_t>{0, -1, 4, 1, 2, -1}));
  }
}

TEST(MoePermute, WritesNothingToRowsWithoutPairs) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint8_t> call(kFp8, {1, 2, 3, 4}, {9, -1}, 1, 2, 1);
    ASSERT_TRUE(call.run(implementation).ok());
    EXPECT_EQ(call.rows, std::vector<std::uint8_t>(4, 0xa5));
    EXPECT_EQ(call.expert_offsets, (std::vector<std::int32_t>{0, 0, 0}));
    EXPECT_EQ(call.inverse, (std::vector<std::int32_t>{-1, -1}));
  }
}

TEST(MoePermute, ZeroTokensStillHaveOffsets) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint16_t> call(kBf16, {}, {}, 2, 3, 16);
    ASSERT_TRUE(call.run(implementation).ok());
    EXPECT_EQ(call.expert_offsets, (std::vector<std::int32_t>{0, 0, 0, 0}));
  }
}

TEST(MoePermute, GoesThroughTheMap) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint8_t> call(kFp8, {0x81, 0x82, 0x83}, {0, 4, 1, 3, 2, 5}, 2, 2, 1);
    const std::vector<std::int32_t> map = {1, -1, 0, 2, 1};  // id 5 has no entry
    call.args.expert_map = TensorView::of(map.data(), kInt32, {5});
    ASSERT_TRUE(call.run(implementation).ok());
    EXPECT_EQ(call.expert_offsets, (std::vector<std::int32_t>{0, 1, 3}));
    EXPECT_EQ(call.inverse, (std::vector<std::int32_t>{1, 2, -1, -1, 0, -1}));
    EXPECT_EQ(call.rows, (std::vector<std::uint8_t>{0x83, 0x81, 0x81, 0xa5, 0xa5, 0xa5}));
  }
}

TEST(MoePermute, AMapWithoutEntriesHasNoExperts) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint8_t> call(kFp8, {1, 2}, {0, 1}, 1, 2, 1);
    call.args.expert_map = TensorView::of(nullptr, kInt32, {0});
    ASSERT_TRUE(call.run(implementation).ok());
    EXPECT_EQ(call.inverse, (std::vector<std::int32_t>{-1, -1}));
  }
}

TEST(MoePermute, HasTheSameBitsOnAnyNumberOfThreads) {
  contract::MoePermuteCase c;
  c.num_tokens = 700;
  c.top_k = 4;
  c.hidden_size = 1021;
  c.num_experts = 24;
  c.block_size = 64;
  c.ids = contract::PairIds::kMixed;
  const contract::CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoePermuteArgs>();
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(args.rows.num_elements));
  std::vector<std::int32_t> offsets(static_cast<std::size_t>(args.expert_offsets.num_elements));
  std::vector<std::int32_t> inverse(static_cast<std::size_t>(args.inverse.num_elements));
  args.rows.data = rows.data();
  args.expert_offsets.data = offsets.data();
  args.inverse.data = inverse.data();
  std::vector<std::uint16_t> expected;
  for (const int num_threads : {1, 2, 5}) {
    std::fill(rows.begin(), rows.end(), std::uint16_t{0xa5a5});
    Context context;
    context.num_threads = num_threads;
    ASSERT_TRUE(moe_permute(args, context).ok());
    EXPECT_TRUE(contract::check_moe_permute(args).empty());
    if (expected.empty()) expected = rows;
    EXPECT_TRUE(rows == expected) << num_threads;
  }
}

/// A range of addresses, of which only the pages that are touched take memory.
class SparseMemory {
 public:
  explicit SparseMemory(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  ~SparseMemory() {
    if (is_there()) munmap(data_, bytes_);
  }
  bool is_there() const { return data_ != MAP_FAILED; }
  std::uint32_t* words() const { return static_cast<std::uint32_t*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

TEST(MoePermute, ReachesRowsThatLieMoreThan2To32ElementsApart) {
  constexpr std::int64_t kColumns = 40;
  constexpr std::int64_t kXStride = (std::int64_t{1} << 32) + 24;
  constexpr std::int64_t kRowsStride = (std::int64_t{1} << 31) + 56;
  const SparseMemory x(sizeof(std::uint32_t) * 2 * kXStride);
  const SparseMemory rows(sizeof(std::uint32_t) * 4 * kRowsStride);
  if (!x.is_there() || !rows.is_there()) GTEST_SKIP() << "no such address range";
  for (std::int64_t h = 0; h < kColumns; ++h) {
    x.words()[h] = static_cast<std::uint32_t>(h);
    x.words()[kXStride + h] = static_cast<std::uint32_t>(1000 + h);
  }
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    Call<std::uint32_t> call(kFp32, std::vector<std::uint32_t>(2 * kColumns), {1, 0, 0, 1}, 2, 2,
                             1);
    call.args.x = contract::strided(TensorView::of(x.words(), kFp32, {2, kColumns}), {kXStride, 1});
    call.args.rows =
        contract::strided(TensorView::of(rows.words(), kFp32, {4, kColumns}), {kRowsStride, 1});
    ASSERT_TRUE(call.run(implementation).ok());
    for (std::int64_t row = 0; row < 4; ++row) {
      for (std::int64_t h = 0; h < kColumns; ++h) {
        std::uint32_t& found = rows.words()[row * kRowsStride + h];
        ASSERT_EQ(found, static_cast<std::uint32_t>(row % 2 * 1000 + h));
        found = 1;
      }
    }
  }
}

/// The message of a refused call, which must not write anything.
std::string refusal(const std::function<void(MoePermuteArgs*)>& spoil, StatusCode code) {
  Call<std::uint16_t> call(kBf16, {1, 2, 3, 4, 5, 6}, {0, 1, 1, 0, 2, 0}, 2, 3, 1);
  spoil(&call.args);
  const Status status = moe_permute(call.args, Context{});
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(call.rows, std::vector<std::uint16_t>(12, 0xa5a5));
  EXPECT_EQ(call.expert_offsets, std::vector<std::int32_t>(4, -7));
  EXPECT_EQ(call.inverse, std::vector<std::int32_t>(6, -7));
  return std::string(status.message());
}

TEST(MoePermute, RefusesTokensWithoutASlot) {
  EXPECT_EQ(refusal(
                [](MoePermuteArgs* args) {
                  args->topk_ids = TensorView::of(nullptr, kInt64, {3, 0});
                },
                StatusCode::kInvalidValue),
            "moe_permute: topk_ids.shape[1]: expected an integer in [1, 2147483647], got 0");
}

TEST(MoePermute, RefusesIdsOfOtherTokens) {
  EXPECT_EQ(
      refusal([](MoePermuteArgs* args) { args->topk_ids.shape[0] = 4; }, StatusCode::kInvalidValue),
      "moe_permute: topk_ids.shape[0]: expected 3, got 4");
}

TEST(MoePermute, RefusesMoreIdsThan32BitsCount) {
  EXPECT_EQ(refusal(
                [](MoePermuteArgs* args) {
                  args->topk_ids.shape[1] = 1 << 30;
                  args->topk_ids.strides[0] = 1 << 30;
                  args->topk_ids.num_elements = std::int64_t{3} << 30;
                },
                StatusCode::kInvalidValue),
            "moe_permute: topk_ids: expected at most 2147483647 ids, got 3221225472");
}

TEST(MoePermute, RefusesACapacityThat32BitsDoNotHold) {
  EXPECT_EQ(
      refusal([](MoePermuteArgs* args) { args->block_size = 1 << 30; }, StatusCode::kInvalidValue),
      "moe_permute: capacity: expected at most 2147483647 slots, got 3221225475 (6 ids + "
      "min(ids, 3 experts) * (block_size 1073741824 - 1))");
}

TEST(MoePermute, RefusesAnotherDataTypeOfTheRows) {
  EXPECT_EQ(refusal([](MoePermuteArgs* args) { args->rows.dtype.code = kDLFloat; },
                    StatusCode::kInvalidType),
            "moe_permute: rows.dtype: expected bfloat16, as x has, got float16");
}

TEST(MoePermute, RefusesOffsetsOfOtherExperts) {
  EXPECT_EQ(refusal([](MoePermuteArgs* args) { args->expert_offsets.shape[0] = 3; },
                    StatusCode::kInvalidValue),
            "moe_permute: expert_offsets.shape[0]: expected 4, got 3");
}

}  // namespace
}  // namespace tessera::test
