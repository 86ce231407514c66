// The guarded memory that the tests of all ops rely on: what counts as damage, byte by byte.
#include "guarded_call.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "moe_sum_cases.hpp"
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
