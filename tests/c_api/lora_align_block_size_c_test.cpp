// lora_align_block_size in the C API: the outputs of the C++ one, and refusals with its messages.
#include <gtest/gtest.h>

#include <string>

#include "c_arguments.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

TEST(LoraCApi, GivesTheOutputsOfTheCppApi) {
  for (const auto& c : contract::lora_align_block_size_cases()) {
    SCOPED_TRACE(c.pairs.name);
    TypedCall<LoraAlignBlockSizeArgs> cpp(c), plain_c(c);
    ASSERT_TRUE(cpp.run().ok());
    tessera_lora_align_block_size_args args = c_args(plain_c.args);
    tessera_lora_align_block_size_sizes sizes = empty_sizes<tessera_lora_align_block_size_sizes>();
    ASSERT_EQ(tessera_lora_align_block_size_query(&args, &sizes), TESSERA_OK)
        << tessera_last_error();
    const std::int64_t extra_length = c.max_loras * c.pairs.extra_length;
    EXPECT_EQ(sizes.sorted_token_ids_length + extra_length, args.sorted_token_ids_length);
    EXPECT_EQ(sizes.expert_ids_length + extra_length, args.expert_ids_length);
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
    args.workspace = workspace.data();
    args.workspace_bytes = sizes.workspace_bytes;
    ASSERT_EQ(tessera_lora_align_block_size(&args), TESSERA_OK) << tessera_last_error();
    EXPECT_TRUE(plain_c.outputs() == cpp.outputs());
    EXPECT_EQ(plain_c.damage(), "");
    EXPECT_TRUE(workspace.intact());
  }
}

TEST(LoraCApi, RefusesWithTheMessageAndWritesNothing) {
  TypedCall<LoraAlignBlockSizeArgs> call(contract::lora_align_block_size_cases()[0]);
  const tessera_lora_align_block_size_args good = c_args(call.args);
  const auto expect = [&](const tessera_lora_align_block_size_args& args,
                          const std::string& message) {
    EXPECT_EQ(tessera_lora_align_block_size(&args), TESSERA_INVALID_VALUE);
    EXPECT_EQ(tessera_last_error(), "lora_align_block_size: " + message);
    EXPECT_TRUE(call.outputs_untouched());
  };
  auto args = good;
  args.struct_size = 8;
  expect(args, "args.struct_size: expected " + std::to_string(sizeof(args)) + ", got 8");
  args = good;
  args.device_type = 7;
  expect(args, "device_type: expected a tessera_device_type, got 7");
  args = good;
  args.top_k = 0;
  expect(args, "top_k: expected an integer in [1, 2147483647], got 0");
  args = good;
  args.top_k = 5;
  expect(args, "top_k: expected a divisor of topk_ids.num_elements, 512, got 5");
  args = good;
  args.max_loras = 0;
  expect(args, "max_loras: expected an integer in [1, 1048576], got 0");
  tessera_lora_align_block_size_sizes sizes = empty_sizes<tessera_lora_align_block_size_sizes>();
  sizes.expert_ids_length = -1;
  EXPECT_EQ(tessera_lora_align_block_size_query(&args, &sizes), TESSERA_INVALID_VALUE);
  EXPECT_EQ(sizes.expert_ids_length, -1);
  ASSERT_EQ(tessera_lora_align_block_size_query(&good, &sizes), TESSERA_OK);
  expect(good,
         "workspace: expected at least " + std::to_string(sizes.workspace_bytes) + " bytes, got 0");
  EXPECT_EQ(tessera_lora_align_block_size(nullptr), TESSERA_INVALID_VALUE);
  args = good;
  args.topk_ids_dtype = 8;
  EXPECT_EQ(tessera_lora_align_block_size(&args), TESSERA_INVALID_TYPE);
  EXPECT_STREQ(tessera_last_error(),
               "lora_align_block_size: topk_ids_dtype: expected a tessera_dtype, got 8");
}

}  // namespace
}  // namespace tessera::test
