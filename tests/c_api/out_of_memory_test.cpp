// Memory that runs out at any allocation of the C functions and of the library's own: a status
// comes back, and no exception leaves the library.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "c_arguments.hpp"
#include "failing_memory.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/info.hpp"
#include "tessera/tessera.h"

namespace tessera::test {
namespace {

/// Reads the environment and looks for the CUDA backend, both of which is done until it succeeds.
TEST(OutOfMemory, InTheFirstCallOfAProcess) {
  // Too long for a string to hold without memory of its own.
  constexpr const char* kLongText = "a value of more than fifteen characters";
  setenv("TESSERA_VALIDATE", kLongText, 1);
  int num_failed_reads = 0;
  with_failure(
      {}, [] { return *validate_default(); }, &num_failed_reads);
  EXPECT_EQ(num_failed_reads, 1);

  tessera_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.num_ids = 1 << 20;
  args.block_size = args.num_experts = 8;
  auto sizes = empty_sizes<tessera_align_block_size_sizes>();
  for (const int device_type : {TESSERA_CPU, TESSERA_CUDA}) {
    args.device_type = device_type;
    std::vector<Result> results;
    for (int num_failed = 1; num_failed != 0;) {
      const int n = static_cast<int>(results.size());
      results.push_back(with_failure(
          {.once = true, .succeed = n},
          [&] { return tessera_align_block_size_query(&args, &sizes); }, &num_failed));
    }
    for (const Result& result : results) {
      EXPECT_TRUE(result.code == results.back().code || result.code == TESSERA_RUNTIME_ERROR);
      EXPECT_EQ(result.code == TESSERA_RUNTIME_ERROR,
                result.message.starts_with("align_block_size: memory: "));
    }
    EXPECT_NE(results.back().code, TESSERA_RUNTIME_ERROR);
  }
  EXPECT_STREQ(validate_default(), kLongText);
}

TEST(OutOfMemory, OfTheLibrarysOwnFunctions) {
  EXPECT_GT(expect_no_exception("no such device", "warmup", StatusCode::kInvalidValue,
                                [] { return tessera_warmup(7, 0); }),
            0);
  EXPECT_EQ(expect_no_exception("cpu", "warmup", StatusCode::kOk,
                                [] { return tessera_warmup(TESSERA_CPU, 0); }),
            0);
  EXPECT_GT(expect_no_exception("metal", "warmup", StatusCode::kUnsupported,
                                [] {
                                  return warmup({kDLMetal, 0});
                                }),
            0);
  for (int n = 0; n < 20; ++n) {
    std::thread([&] {
      failure = {.armed = true, .once = true, .succeed = n};
      const std::vector<BackendInfo> found = backends();
      const char* validate = validate_default();
      failure.armed = false;
      EXPECT_TRUE(found.empty() || found.size() == 2) << n;
      EXPECT_NE(validate, nullptr);
    }).join();
  }
}

/// Both entry points of an op with one argument changed.
template <typename Args>
struct Refusal {
  const char* what;
  StatusCode code;
  std::function<void(Args*)> change;
  bool by_query = false;  ///< the query refuses it, too
};

template <typename Args>
void expect_no_exception_from_c(const std::string& op, Args good,
                                const std::vector<Refusal<Args>>& refusals,
                                const std::function<bool()>& untouched) {
  using Sizes = typename CFunctions<Args>::Sizes;
  constexpr auto kQuery = CFunctions<Args>::kQuery;
  constexpr auto kRun = CFunctions<Args>::kRun;
  Sizes sizes = empty_sizes<Sizes>();
  ASSERT_EQ(kQuery(&good, &sizes), TESSERA_OK);
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(workspace_bytes(sizes)));
  set_workspace(workspace.span(), &good);
  for (const Refusal<Args>& refusal : refusals) {
    Args args = good;
    refusal.change(&args);
    EXPECT_GT(expect_no_exception(
                  refusal.what, op, refusal.code, [&] { return kRun(&args); }, untouched),
              0);
    EXPECT_TRUE(untouched());
    if (!refusal.by_query) continue;
    const Sizes before = sizes;
    EXPECT_GT(
        expect_no_exception(refusal.what, op, refusal.code, [&] { return kQuery(&args, &sizes); }),
        0);
    EXPECT_EQ(std::memcmp(&sizes, &before, sizeof(sizes)), 0);
  }
  Sizes other_size{};
  expect_no_exception("sizes", op, StatusCode::kInvalidValue,
                      [&] { return kQuery(&good, &other_size); });
  expect_no_exception("query", op, StatusCode::kOk, [&] { return kQuery(&good, &sizes); });
  expect_no_exception(
      "run", op, StatusCode::kOk, [&] { return kRun(&good); }, untouched);
}

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;

TEST(OutOfMemory, OfAlignBlockSizeInC) {
  using Args = tessera_align_block_size_args;
  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("many_broken_ids"));
  Args good = c_args(call.args);
  good.num_threads = 3;
  expect_no_exception_from_c<Args>(
      "align_block_size", good,
      {{"struct_size", kValue, [](Args* a) { a->struct_size = 1; }, true},
       {"device_type", kValue, [](Args* a) { a->device_type = 7; }, true},
       {"topk_ids_dtype", kType, [](Args* a) { a->topk_ids_dtype = 8; }},
       {"topk_ids.data", kValue, [](Args* a) { a->topk_ids = nullptr; }},
       {"block_size", kValue, [](Args* a) { a->block_size = 0; }, true},
       {"num_experts", kValue, [](Args* a) { a->num_experts = -1; }, true},
       {"num_ids", kValue, [](Args* a) { a->num_ids = -1; }, true},
       {"capacity", kValue, [](Args* a) { a->block_size = INT32_MAX; }, true},
       {"num_threads", kValue, [](Args* a) { a->num_threads = -1; }, true},
       {"too short", kValue, [](Args* a) { a->expert_ids_length = 1; }},
       {"no memory", kValue, [](Args* a) { a->num_tokens_post_pad = nullptr; }},
       {"misaligned", kValue,
        [](Args* a) { a->topk_ids = static_cast<const char*>(a->topk_ids) + 1; }},
       {"workspace", kValue, [](Args* a) { a->workspace_bytes = 0; }},
       {"overlap", kValue, [](Args* a) { a->num_dropped = a->num_tokens_post_pad; }}},
      [&] {
        // The last call of each list succeeds.
        const bool result = call.outputs_untouched();
        call.poison_outputs(kPoison);
        return result;
      });
}

TEST(OutOfMemory, OfBatchedAlignBlockSizeInC) {
  using Args = tessera_batched_align_block_size_args;
  TypedCall<BatchedAlignBlockSizeArgs> call(contract::batched_align_block_size_cases()[0]);
  expect_no_exception_from_c<Args>(
      "batched_align_block_size", c_args(call.args),
      {{"struct_size", kValue, [](Args* a) { a->struct_size = 1; }, true},
       {"device_type", kValue, [](Args* a) { a->device_type = 7; }},
       {"block_size", kValue, [](Args* a) { a->block_size = 0; }, true},
       {"capacity", kValue, [](Args* a) { a->max_tokens_per_batch = INT32_MAX; }, true},
       {"too short", kValue, [](Args* a) { a->sorted_token_ids_length = 1; }},
       {"no memory", kValue, [](Args* a) { a->expert_num_tokens = nullptr; }},
       {"overlap", kValue, [](Args* a) { a->num_tokens_post_pad = a->expert_ids; }}},
      [&] { return call.outputs_untouched(); });
}

TEST(OutOfMemory, OfLoraAlignBlockSizeInC) {
  using Args = tessera_lora_align_block_size_args;
  TypedCall<LoraAlignBlockSizeArgs> call(contract::lora_align_block_size_cases()[0]);
  expect_no_exception_from_c<Args>(
      "lora_align_block_size", c_args(call.args),
      {{"struct_size", kValue, [](Args* a) { a->struct_size = 1; }, true},
       {"device_type", kValue, [](Args* a) { a->device_type = 7; }, true},
       {"topk_ids_dtype", kType, [](Args* a) { a->topk_ids_dtype = -1; }},
       {"top_k", kValue, [](Args* a) { a->top_k = -1; }},
       {"top_k divides", kValue, [](Args* a) { a->top_k = 5; }},
       {"max_loras", kValue, [](Args* a) { a->max_loras = 0; }, true},
       {"rows", kValue, [](Args* a) { a->sorted_token_ids_length += 1; }},
       {"mapping", kValue, [](Args* a) { a->token_lora_mapping = nullptr; }},
       {"workspace", kValue, [](Args* a) { a->workspace_bytes = 0; }},
       {"overlap", kValue, [](Args* a) { a->num_tokens_post_pad = a->expert_ids; }}},
      [&] { return call.outputs_untouched(); });
}

TEST(OutOfMemory, OfTheTypedCppQueries) {
  const std::string align = "align_block_size";
  const AlignBlockSizeShape shape{100, 8, 16};
  AlignBlockSizeSizes sizes;
  std::vector<ImplementationReport> reports;
  const auto expect = [&](const char* what, const std::string& op, StatusCode code,
                          const auto& call) {
    EXPECT_GT(expect_no_exception(what, op, code, call), 0);
  };
  Context unknown, metal;
  unknown.implementation = "cpu/magic";
  metal.device = {kDLMetal, 0};
  for (const Context& context : {unknown, metal}) {
    expect("sizes", align, kUnsupported,
           [&] { return align_block_size_sizes(shape, context, &sizes); });
  }
  expect("explain", align, StatusCode::kOk,
         [&] { return explain_align_block_size(shape, unknown, &reports); });
  expect("explain", align, kValue, [&] {
    return explain_align_block_size({1, 0, 1}, {}, &reports);
  });

  BatchedAlignBlockSizeSizes batched;
  expect("batched sizes", "batched_align_block_size", kValue, [&] {
    return batched_align_block_size_sizes({1, 1, 0}, &batched);
  });
  LoraAlignBlockSizeSizes lora;
  expect("lora sizes", "lora_align_block_size", kUnsupported, [&] {
    return lora_align_block_size_sizes({8, 4, 4, 1}, metal, &lora);
  });
}

}  // namespace
}  // namespace tessera::test
