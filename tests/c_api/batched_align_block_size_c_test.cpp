// batched_align_block_size in the C API: the outputs of the C++ one, and refusals with its
// messages.
#include <gtest/gtest.h>

#include <string>

#include "batched_align_block_size_cases.hpp"
#include "c_arguments.hpp"
#include "guarded_call.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

TEST(BatchedCApi, GivesTheOutputsOfTheCppApi) {
  for (const auto& c : contract::batched_align_block_size_cases()) {
    SCOPED_TRACE(c.name);
    TypedCall<BatchedAlignBlockSizeArgs> cpp(c), plain_c(c);
    ASSERT_TRUE(cpp.run().ok());
    const auto args = c_args(plain_c.args);
    tessera_batched_align_block_size_sizes sizes{};
    sizes.struct_size = sizeof(sizes);
    ASSERT_EQ(tessera_batched_align_block_size_query(&args, &sizes), TESSERA_OK)
        << tessera_last_error();
    EXPECT_EQ(sizes.sorted_token_ids_length, smallest_sizes(c).sorted_token_ids);
    EXPECT_EQ(sizes.expert_ids_length, smallest_sizes(c).expert_ids);
    ASSERT_EQ(tessera_batched_align_block_size(&args), TESSERA_OK) << tessera_last_error();
    EXPECT_STREQ(tessera_last_error(), "");
    EXPECT_TRUE(plain_c.outputs() == cpp.outputs());
    EXPECT_EQ(plain_c.damage(), "");
  }
}

TEST(BatchedCApi, RefusesWithTheMessageAndWritesNothing) {
  TypedCall<BatchedAlignBlockSizeArgs> call(contract::batched_align_block_size_cases()[0]);
  const auto good = c_args(call.args);
  tessera_batched_align_block_size_sizes sizes{};
  sizes.sorted_token_ids_length = -1;
  const auto expect = [&](const tessera_batched_align_block_size_args& args,
                          const std::string& message) {
    EXPECT_EQ(tessera_batched_align_block_size(&args), TESSERA_INVALID_VALUE);
    EXPECT_EQ(tessera_last_error(), "batched_align_block_size: " + message);
    EXPECT_TRUE(call.outputs_untouched());
  };
  auto args = good;
  args.struct_size = 8;
  expect(args, "args.struct_size: expected " + std::to_string(sizeof(args)) + ", got 8");
  args = good;
  args.device_type = 7;
  expect(args, "device_type: expected a tessera_device_type, got 7");
  args = good;
  args.expert_ids_length = 1;
  expect(args, "expert_ids.num_elements: expected at least 32, got 1");
  args = good;
  args.block_size = 0;
  expect(args, "block_size: expected an integer in [1, 2147483647], got 0");
  EXPECT_EQ(tessera_batched_align_block_size(nullptr), TESSERA_INVALID_VALUE);

  EXPECT_EQ(tessera_batched_align_block_size_query(&good, &sizes), TESSERA_INVALID_VALUE);
  EXPECT_EQ(tessera_last_error(), "batched_align_block_size: sizes.struct_size: expected " +
                                      std::to_string(sizeof(sizes)) + ", got 0");
  sizes.struct_size = sizeof(sizes);
  EXPECT_EQ(tessera_batched_align_block_size_query(&args, &sizes), TESSERA_INVALID_VALUE);
  EXPECT_EQ(sizes.sorted_token_ids_length, -1);
}

}  // namespace
}  // namespace tessera::test
