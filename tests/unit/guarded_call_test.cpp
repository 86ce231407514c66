// The guarded memory that the tests of all ops rely on: what counts as damage, byte by byte.
#include "guarded_call.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe_permute_cases.hpp"
#include "moe_sum_cases.hpp"
#include "tessera/moe_permute.hpp"
#include "tessera/moe_sum.hpp"

namespace tessera::test {
namespace {

constexpr std::size_t kRowBytes = 10;     // 5 columns of bfloat16
constexpr std::size_t kStrideBytes = 16;  // and 3 columns between rows

contract::MoeSumCase with_gaps() {
  contract::MoeSumCase c;
  c.num_tokens = 4;
  c.top_k = 2;
  c.hidden_size = 5;
  c.slot_gap = 1;
  c.token_gap = 2;
  c.output_gap = 3;
  return c;
}

/// The damage after one byte of an argument has changed. The byte is restored.
std::string damage_by(GuardedCall& call, std::string_view argument, std::size_t byte) {
  std::byte& changed = call.memory(argument)[byte];
  changed ^= std::byte{1};
  std::string damage = call.damage();
  changed ^= std::byte{1};
  return damage;
}

TEST(GuardedCall, ReportsWritesBetweenTheRowsOfAnOutput) {
  TypedCall<MoeSumArgs> call(with_gaps());
  for (const int poison : {0xa5, 0x00, 0xff}) {
    call.poison_outputs(static_cast<std::byte>(poison));
    ASSERT_TRUE(call.run().ok());
    ASSERT_EQ(call.damage(), "");
    ASSERT_EQ(call.memory("output").size(), 3 * kStrideBytes + kRowBytes);
    for (std::size_t byte = 0; byte < call.memory("output").size(); ++byte) {
      const char* const expected = byte % kStrideBytes < kRowBytes ? "" : "output";
      EXPECT_EQ(damage_by(call, "output", byte), expected) << poison << ", byte " << byte;
    }
  }
}

/// About half of the pairs count, so that the last rows are not in use.
TEST(GuardedCall, ReportsWritesToRowsThatACallLeavesAlone) {
  contract::MoePermuteCase c;
  c.num_tokens = 6;
  c.top_k = 2;
  c.hidden_size = 5;
  c.num_experts = 3;
  c.block_size = 4;
  c.ids = contract::PairIds::kMixed;
  for (const std::int64_t gap : {0, 3}) {
    c.rows_gap = gap;
    TypedCall<MoePermuteArgs> call(c);
    ASSERT_TRUE(call.run().ok());
    ASSERT_EQ(call.damage(), "");
    const std::vector<std::int32_t> offsets = call.outputs().int32s("expert_offsets");
    const auto stride = static_cast<std::size_t>(2 * (5 + gap));
    const auto in_use = static_cast<std::size_t>(offsets.back());
    ASSERT_GT(in_use, 0U);
    ASSERT_LT(in_use, 21U);
    EXPECT_EQ(call.outputs().bytes["rows"].size(), in_use * kRowBytes);
    for (std::size_t byte = 0; byte < call.memory("rows").size(); ++byte) {
      const bool is_written = byte / stride < in_use && byte % stride < kRowBytes;
      EXPECT_EQ(damage_by(call, "rows", byte), is_written ? "" : "rows") << gap << ", " << byte;
    }
  }
}

TEST(GuardedCall, ReportsNoWriteToAnOutputWithoutGaps) {
  contract::MoeSumCase c = with_gaps();
  c.output_gap = 0;
  TypedCall<MoeSumArgs> call(c);
  ASSERT_TRUE(call.run().ok());
  ASSERT_EQ(call.memory("output").size(), 4 * kRowBytes);
  for (std::size_t byte = 0; byte < call.memory("output").size(); ++byte) {
    EXPECT_EQ(damage_by(call, "output", byte), "") << byte;
  }
}

TEST(GuardedCall, ReportsEveryChangeOfAnInputAndOfItsGaps) {
  TypedCall<MoeSumArgs> call(with_gaps());
  ASSERT_TRUE(call.run().ok());
  ASSERT_FALSE(call.memory("input").empty());
  for (std::size_t byte = 0; byte < call.memory("input").size(); ++byte) {
    EXPECT_EQ(damage_by(call, "input", byte), "input") << byte;
  }
}

}  // namespace
}  // namespace tessera::test
