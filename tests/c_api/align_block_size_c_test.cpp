// The C API: versioning, codes, messages, and the same outputs as the C++ one.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "c_arguments.hpp"
#include "guarded_call.hpp"
#include "tessera/info.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

TEST(CApi, GivesTheOutputsOfTheCppApi) {
  for (const contract::AlignBlockSizeCase& c : contract::align_block_size_cases()) {
    if (c.num_tokens * c.top_k > 400000) continue;
    SCOPED_TRACE(c.name);
    TypedCall<AlignBlockSizeArgs> cpp(c), plain_c(c);
    ASSERT_TRUE(cpp.run().ok());

    tessera_align_block_size_args args = c_args(plain_c.args);
    tessera_align_block_size_sizes sizes = empty_sizes<tessera_align_block_size_sizes>();
    ASSERT_EQ(tessera_align_block_size_query(&args, &sizes), TESSERA_OK) << tessera_last_error();
    EXPECT_EQ(sizes.sorted_token_ids_length + c.extra_length, args.sorted_token_ids_length);
    EXPECT_EQ(sizes.expert_ids_length + c.extra_length, args.expert_ids_length);
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
    args.workspace = workspace.data();
    args.workspace_bytes = sizes.workspace_bytes;
    ASSERT_EQ(tessera_align_block_size(&args), TESSERA_OK) << tessera_last_error();
    EXPECT_TRUE(plain_c.outputs() == cpp.outputs());
    EXPECT_EQ(plain_c.damage(), "");
    EXPECT_TRUE(workspace.intact());
  }
}

/// The struct that callers were compiled with while the API's version was 1.
struct FirstVersionArgs {
  std::size_t struct_size;
  const void* topk_ids;
  int topk_ids_dtype;
  std::int64_t num_ids;
  std::int64_t block_size;
  std::int64_t num_experts;
  const std::int32_t* expert_map;
  int ignore_invalid_experts;
  int pad_sorted_ids;
  std::int32_t tail_expert;
  std::int32_t* sorted_token_ids;
  std::int64_t sorted_token_ids_length;
  std::int32_t* expert_ids;
  std::int64_t expert_ids_length;
  std::int32_t* num_tokens_post_pad;
  std::int32_t* expert_counts;
  std::int32_t* num_dropped;
  int device_type;
  int device_id;
  void* stream;
  void* workspace;
  std::size_t workspace_bytes;
  int num_threads;
};
constexpr std::size_t kFirstVersionSize = sizeof(FirstVersionArgs);

/// Leaves no zero on the stack below the caller's frame: what a callee does not initialise is
/// noise.
[[gnu::noinline]] void spoil_stack() {
  volatile unsigned char memory[16384];
  for (volatile unsigned char& byte : memory) byte = 0xa5;
}

TEST(CApi, CallersOfTheFirstVersionGetWhatTheyGot) {
  // With a map, broken ids and an optional output beside the struct's end: were a newer field read,
  // the poison behind the struct would show, and were it not set, that on the stack.
  for (const char* name : {"map_half_remote", "many_broken_ids"}) {
    SCOPED_TRACE(name);
    contract::AlignBlockSizeCase c = *contract::find_case(name);
    TypedCall<AlignBlockSizeArgs> expected(c), found(c);
    ASSERT_TRUE(expected.run().ok());

    const tessera_align_block_size_args full = c_args(found.args);
    GuardedBuffer<std::byte> memory(sizeof(full));
    std::memcpy(memory.data(), &full, kFirstVersionSize);
    auto* const args = reinterpret_cast<tessera_align_block_size_args*>(memory.data());
    args->struct_size = kFirstVersionSize;
    auto sizes = empty_sizes<tessera_align_block_size_sizes>();
    spoil_stack();
    ASSERT_EQ(tessera_align_block_size_query(args, &sizes), TESSERA_OK) << tessera_last_error();
    EXPECT_EQ(sizes.sorted_token_ids_length + c.extra_length, full.sorted_token_ids_length);
    EXPECT_EQ(sizes.expert_ids_length + c.extra_length, full.expert_ids_length);
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
    args->workspace = workspace.data();
    args->workspace_bytes = sizes.workspace_bytes;
    spoil_stack();
    ASSERT_EQ(tessera_align_block_size(args), TESSERA_OK) << tessera_last_error();
    EXPECT_TRUE(found.outputs() == expected.outputs());
    EXPECT_EQ(found.damage(), "");
    EXPECT_TRUE(workspace.intact());
  }
}

class CApiRefusals : public testing::Test {
 protected:
  CApiRefusals() : call_(*contract::find_case("block_7")), args_(c_args(call_.args)) {}

  /// Both entry points refuse what both of them read.
  void expect_both_refuse(tessera_status code, const std::string& message) {
    tessera_align_block_size_sizes sizes = empty_sizes<tessera_align_block_size_sizes>();
    sizes.sorted_token_ids_length = -1;
    EXPECT_EQ(tessera_align_block_size_query(&args_, &sizes), code);
    EXPECT_EQ(tessera_last_error(), message);
    EXPECT_EQ(sizes.sorted_token_ids_length, -1);
    expect_call_refuses(code, message);
  }

  void expect_call_refuses(tessera_status code, const std::string& message) {
    EXPECT_EQ(tessera_align_block_size(&args_), code);
    EXPECT_EQ(tessera_last_error(), message);
    EXPECT_TRUE(call_.outputs_untouched());
  }

  TypedCall<AlignBlockSizeArgs> call_;
  tessera_align_block_size_args args_;
};

TEST_F(CApiRefusals, StructOfAnotherSize) {
  const std::size_t right = sizeof(args_);
  for (const std::size_t wrong :
       {std::size_t{0}, kFirstVersionSize - 8, right - 8, right + 8, SIZE_MAX}) {
    args_.struct_size = wrong;
    expect_both_refuse(TESSERA_INVALID_VALUE, "align_block_size: args.struct_size: expected " +
                                                  std::to_string(kFirstVersionSize) + " or " +
                                                  std::to_string(right) + ", got " +
                                                  std::to_string(wrong));
  }
}

TEST_F(CApiRefusals, SizesOfAnotherSize) {
  tessera_align_block_size_sizes sizes{};
  EXPECT_EQ(tessera_align_block_size_query(&args_, &sizes), TESSERA_INVALID_VALUE);
  EXPECT_EQ(tessera_last_error(), "align_block_size: sizes.struct_size: expected " +
                                      std::to_string(sizeof(sizes)) + ", got 0");
}

TEST_F(CApiRefusals, NullStructs) {
  tessera_align_block_size_sizes sizes = empty_sizes<tessera_align_block_size_sizes>();
  EXPECT_EQ(tessera_align_block_size(nullptr), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "align_block_size: args: expected a pointer, got NULL");
  EXPECT_EQ(tessera_align_block_size_query(nullptr, &sizes), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "align_block_size: args: expected a pointer, got NULL");
  EXPECT_EQ(tessera_align_block_size_query(&args_, nullptr), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "align_block_size: sizes: expected a pointer, got NULL");
}

TEST_F(CApiRefusals, NoSuchDtype) {
  for (const int dtype : {-1, 8, 1000}) {
    args_.topk_ids_dtype = dtype;
    expect_call_refuses(
        TESSERA_INVALID_TYPE,
        "align_block_size: topk_ids_dtype: expected a tessera_dtype, got " + std::to_string(dtype));
  }
}

TEST_F(CApiRefusals, NoSuchDevice) {
  args_.device_type = 7;
  expect_both_refuse(TESSERA_INVALID_VALUE,
                     "align_block_size: device_type: expected a tessera_device_type, got 7");
}

TEST_F(CApiRefusals, BadShape) {
  args_.block_size = 0;
  expect_both_refuse(TESSERA_INVALID_VALUE,
                     "align_block_size: block_size: expected an integer in [1, 2147483647], got 0");
}

TEST_F(CApiRefusals, NegativeThreads) {
  args_.num_threads = -1;
  expect_both_refuse(
      TESSERA_INVALID_VALUE,
      "align_block_size: num_threads: expected an integer >= 1, or 0 for automatic, got -1");
}

TEST_F(CApiRefusals, MissingOutput) {
  args_.num_tokens_post_pad = nullptr;
  expect_call_refuses(TESSERA_INVALID_VALUE,
                      "align_block_size: num_tokens_post_pad.data: expected memory for its "
                      "elements, got a null pointer");
}

TEST_F(CApiRefusals, MissingWorkspace) {
  tessera_align_block_size_sizes sizes = empty_sizes<tessera_align_block_size_sizes>();
  ASSERT_EQ(tessera_align_block_size_query(&args_, &sizes), TESSERA_OK);
  expect_call_refuses(TESSERA_INVALID_VALUE, "align_block_size: workspace: expected at least " +
                                                 std::to_string(sizes.workspace_bytes) +
                                                 " bytes, got 0");
}

TEST_F(CApiRefusals, MessageBelongsToTheThread) {
  EXPECT_EQ(tessera_align_block_size(nullptr), TESSERA_INVALID_VALUE);
  std::string others = "unread";
  std::thread([&] { others = tessera_last_error(); }).join();
  EXPECT_EQ(others, "");
  EXPECT_STREQ(tessera_last_error(), "align_block_size: args: expected a pointer, got NULL");
}

TEST(CApi, WarmsUpDevices) {
  EXPECT_EQ(tessera_warmup(TESSERA_CPU, 0), TESSERA_OK);
  EXPECT_STREQ(tessera_last_error(), "");
  EXPECT_EQ(tessera_warmup(7, 0), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "warmup: device_type: expected a tessera_device_type, got 7");
  // There is none of this number, or no backend for it.
  const tessera_status status = tessera_warmup(TESSERA_CUDA, 63);
  EXPECT_TRUE(status == TESSERA_INVALID_VALUE || status == TESSERA_UNSUPPORTED);
  EXPECT_EQ(std::string(tessera_last_error()).substr(0, 16), "warmup: device: ");
}

TEST(CApi, TellsItsVersions) {
  EXPECT_STREQ(tessera_version(), tessera::version());
  EXPECT_EQ(tessera_c_api_version(), TESSERA_C_API_VERSION);
}

}  // namespace
}  // namespace tessera::test
