// Memory that runs out at any allocation of any call: a status comes back, and no exception leaves
// the library. The program's operator new serves the library, too.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "batched_align_block_size_cases.hpp"
#include "c_arguments.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "tessera/info.hpp"
#include "tessera/tessera.h"

namespace {

/// Which allocations of the calling thread fail.
struct Failure {
  bool armed = false;
  bool once = false;  ///< only one of them, else all from the first on
  int succeed = 0;    ///< how many succeed before
  int failed = 0;     ///< how many have failed
};

thread_local Failure failure;

bool fails_now() {
  if (!failure.armed) return false;
  if (failure.succeed > 0) {
    --failure.succeed;
    return false;
  }
  if (failure.once && failure.failed > 0) return false;
  ++failure.failed;
  return true;
}

}  // namespace

// Out of line, or the compiler takes what they do for memory that is given back by another way.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return fails_now() ? nullptr : std::malloc(size == 0 ? 1 : size);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment,
                                     const std::nothrow_t&) noexcept {
  const auto step = static_cast<std::size_t>(alignment);
  return fails_now() ? nullptr : std::aligned_alloc(step, (size + step - 1) / step * step);
}
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  void* memory = operator new(size, alignment, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace tessera::test {
namespace {

struct Result {
  int code = -1;
  std::string message;
};

/// A call of the C or of the C++ API whose allocations fail as `when` says. On a thread of its own,
/// which has no last message yet.
template <typename Call>
Result with_failure(const Failure& when, const Call& call, int* num_failed) {
  Result result;
  std::thread([&] {
    failure = when;
    failure.armed = true;
    const auto outcome = call();
    failure.armed = false;
    *num_failed = failure.failed;
    if constexpr (std::is_same_v<decltype(outcome), const Status>) {
      result = {static_cast<int>(outcome.code()), outcome.message()};
    } else {
      result = {static_cast<int>(outcome), tessera_last_error()};
    }
  }).join();
  return result;
}

/// `call` returns `code` where memory suffices, and else that or kRuntimeError; then it has written
/// nothing. Returns how many of its allocations can fail.
template <typename Call>
int expect_no_exception(
    const std::string& what, const std::string& op, StatusCode code, const Call& call,
    const std::function<bool()>& untouched = [] { return true; }) {
  SCOPED_TRACE(what);
  int num_allocations = 0;
  for (const bool once : {false, true}) {
    for (int n = 0;; ++n) {
      int num_failed = 0;
      const Result result = with_failure({.once = once, .succeed = n}, call, &num_failed);
      if (num_failed == 0) {
        EXPECT_EQ(result.code, static_cast<int>(code)) << result.message;
        EXPECT_EQ(result.message.empty(), code == StatusCode::kOk);
        num_allocations = n;
        break;
      }
      // What needs no memory after all may go on without: a call with fewer threads.
      if (result.code == static_cast<int>(code)) continue;
      EXPECT_EQ(result.code, static_cast<int>(StatusCode::kRuntimeError)) << "allocation " << n;
      EXPECT_EQ(result.message,
                op + ": memory: expected enough to finish the call, got an allocation that failed");
      EXPECT_TRUE(untouched()) << "allocation " << n;
    }
  }
  return num_allocations;
}

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

template <typename Args, typename Sizes>
void expect_no_exception_from_c(const std::string& op, const Args& good,
                                tessera_status (*query)(const Args*, Sizes*),
                                tessera_status (*run)(const Args*),
                                const std::vector<Refusal<Args>>& refusals,
                                const std::function<bool()>& untouched) {
  Sizes sizes = empty_sizes<Sizes>();
  for (const Refusal<Args>& refusal : refusals) {
    Args args = good;
    refusal.change(&args);
    EXPECT_GT(expect_no_exception(
                  refusal.what, op, refusal.code, [&] { return run(&args); }, untouched),
              0);
    EXPECT_TRUE(untouched());
    if (!refusal.by_query) continue;
    const Sizes before = sizes;
    EXPECT_GT(
        expect_no_exception(refusal.what, op, refusal.code, [&] { return query(&args, &sizes); }),
        0);
    EXPECT_EQ(std::memcmp(&sizes, &before, sizeof(sizes)), 0);
  }
  Sizes other_size{};
  expect_no_exception("sizes", op, StatusCode::kInvalidValue,
                      [&] { return query(&good, &other_size); });
  expect_no_exception("query", op, StatusCode::kOk, [&] { return query(&good, &sizes); });
  expect_no_exception(
      "run", op, StatusCode::kOk, [&] { return run(&good); }, untouched);
}

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;

TEST(OutOfMemory, OfAlignBlockSizeInC) {
  using Args = tessera_align_block_size_args;
  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("many_broken_ids"));
  Args good = c_args(call.args);
  good.num_threads = 3;
  auto sizes = empty_sizes<tessera_align_block_size_sizes>();
  ASSERT_EQ(tessera_align_block_size_query(&good, &sizes), TESSERA_OK);
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  good.workspace = workspace.data();
  good.workspace_bytes = sizes.workspace_bytes;
  expect_no_exception_from_c<Args, tessera_align_block_size_sizes>(
      "align_block_size", good, tessera_align_block_size_query, tessera_align_block_size,
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
  expect_no_exception_from_c<Args, tessera_batched_align_block_size_sizes>(
      "batched_align_block_size", c_args(call.args), tessera_batched_align_block_size_query,
      tessera_batched_align_block_size,
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
  Args good = c_args(call.args);
  auto sizes = empty_sizes<tessera_lora_align_block_size_sizes>();
  ASSERT_EQ(tessera_lora_align_block_size_query(&good, &sizes), TESSERA_OK);
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  good.workspace = workspace.data();
  good.workspace_bytes = sizes.workspace_bytes;
  expect_no_exception_from_c<Args, tessera_lora_align_block_size_sizes>(
      "lora_align_block_size", good, tessera_lora_align_block_size_query,
      tessera_lora_align_block_size,
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

TEST(OutOfMemory, OfTheCppFunctions) {
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

  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("block_7"));
  const AlignBlockSizeArgs good = call.args;
  const auto expect_run = [&](const char* what, StatusCode code, const auto& change,
                              const Context& context = {}) {
    AlignBlockSizeArgs args = good;
    change(&args);
    expect(what, align, code, [&] { return align_block_size(args, context); });
    EXPECT_TRUE(call.outputs_untouched());
  };
  using Args = AlignBlockSizeArgs;
  expect_run("float", kType, [](Args* a) { a->topk_ids.dtype = {kDLFloat, 32, 1}; });
  expect_run("none", kValue, [](Args* a) { a->topk_ids = {}; });
  expect_run("strided", kValue, [](Args* a) { a->topk_ids.contiguous = false; });
  expect_run("elsewhere", kValue, [](Args* a) { a->expert_ids.device = {kDLCUDA, 1}; });
  expect_run("int64", kType, [](Args* a) { a->expert_ids.dtype = {kDLInt, 64, 1}; });
  expect_run("length", kValue, [](Args* a) { a->expert_counts.num_elements += 1; });
  expect_run(
      "not there", kUnsupported, [](Args*) {}, unknown);

  BatchedAlignBlockSizeSizes batched;
  expect("batched sizes", "batched_align_block_size", kValue, [&] {
    return batched_align_block_size_sizes({1, 1, 0}, &batched);
  });
  expect("batched", "batched_align_block_size", kValue,
         [&] { return batched_align_block_size({}, {}); });
  LoraAlignBlockSizeSizes lora;
  expect("lora sizes", "lora_align_block_size", kUnsupported, [&] {
    return lora_align_block_size_sizes({8, 4, 4, 1}, metal, &lora);
  });
  expect("lora", "lora_align_block_size", kValue, [&] { return lora_align_block_size({}, {}); });
}

}  // namespace
}  // namespace tessera::test
