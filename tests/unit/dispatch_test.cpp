// Which implementation runs, who decides it, and how one can tell.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "tessera/info.hpp"

namespace tessera::test {
namespace {

const AlignBlockSizeShape kShape{8, 4, 4, false};

/// A batch that is large enough for threads.
const AlignBlockSizeShape kLargeShape{1 << 20, 128, 64, false};

std::vector<ImplementationReport> reports_for(const Context& context) {
  std::vector<ImplementationReport> reports;
  const Status status = explain_align_block_size(kShape, context, &reports);
  EXPECT_TRUE(status.ok()) << status.message();
  return reports;
}

std::string selected_in(const Context& context) {
  for (const ImplementationReport& report : reports_for(context)) {
    if (report.selected) return report.name;
  }
  return "none";
}

std::size_t workspace_bytes(const AlignBlockSizeShape& shape, const Context& context) {
  AlignBlockSizeSizes sizes;
  const Status status = align_block_size_sizes(shape, context, &sizes);
  EXPECT_TRUE(status.ok()) << status.message();
  return sizes.workspace_bytes;
}

TEST(Dispatch, FirstImplementationThatCanRunIsSelectedAndTheReferenceIsLast) {
  const auto reports = reports_for(Context{});
  ASSERT_GE(reports.size(), 2U);
  EXPECT_EQ(selected_in(Context{}), "cpu/counting_sort");
  EXPECT_EQ(reports.back().name, "cpu/reference");
  int selected = 0;
  for (const ImplementationReport& report : reports) {
    if (report.selected) {
      ++selected;
      EXPECT_EQ(report.refusal, "");
    }
  }
  EXPECT_EQ(selected, 1);
}

TEST(Dispatch, ContextForcesAnImplementation) {
  for (const ImplementationReport& report : reports_for(Context{})) {
    if (!report.refusal.empty()) continue;
    Context forced;
    forced.implementation = report.name;
    EXPECT_EQ(selected_in(forced), report.name);
    for (const ImplementationReport& other : reports_for(forced)) {
      if (other.name == report.name) continue;
      EXPECT_EQ(other.refusal, "not the implementation asked for, " + report.name);
    }
  }
}

TEST(Dispatch, ForcedImplementationDecidesTheWorkspace) {
  Context reference, counting_sort;
  reference.implementation = "cpu/reference";
  counting_sort.implementation = "cpu/counting_sort";
  EXPECT_NE(workspace_bytes(kLargeShape, reference), workspace_bytes(kLargeShape, counting_sort));
  EXPECT_EQ(workspace_bytes(kLargeShape, Context{}), workspace_bytes(kLargeShape, counting_sort));
}

void expect_unsupported(const Context& context, const std::string& message_start) {
  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("block_7"));
  for (TensorView* view :
       {&call.args.topk_ids, &call.args.sorted_token_ids, &call.args.expert_ids,
        &call.args.num_tokens_post_pad, &call.args.expert_counts, &call.args.num_dropped}) {
    view->device = context.device;
  }
  const Status status = align_block_size(call.args, context);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message().substr(0, message_start.size()), message_start);
  EXPECT_TRUE(call.outputs_untouched());
  AlignBlockSizeSizes sizes;
  EXPECT_EQ(align_block_size_sizes(kShape, context, &sizes).code(), StatusCode::kUnsupported);
}

TEST(Dispatch, UnknownImplementationIsRefused) {
  Context context;
  context.implementation = "cpu/magic";
  expect_unsupported(context,
                     "align_block_size: implementation: expected cpu/counting_sort or "
                     "cpu/reference, got cpu/magic");
}

TEST(Dispatch, DeviceWithoutImplementationIsRefused) {
  Context context;
  context.device = {kDLMetal, 0};
  expect_unsupported(context, "align_block_size: implementation: expected one in this build");
  for (const ImplementationReport& report : reports_for(context)) {
    EXPECT_FALSE(report.selected);
    EXPECT_NE(report.refusal, "");
  }
}

TEST(Dispatch, CudaCallsTellWhyThereIsNoCuda) {
  for (const BackendInfo& backend : backends()) {
    if (backend.name != "cuda") continue;
    if (backend.available) GTEST_SKIP() << "CUDA is available: " << backend.detail;
    EXPECT_NE(backend.detail, "");
    Context context;
    context.device = {kDLCUDA, 0};
    expect_unsupported(context,
                       "align_block_size: implementation: expected one in this build that can run "
                       "on cuda:0, got none; " +
                           backend.detail);
    const Status status = warmup({kDLCUDA, 0});
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    EXPECT_EQ(status.message(),
              "warmup: device: expected one that a backend of this build can use, got cuda:0; " +
                  backend.detail);
    return;
  }
  ADD_FAILURE() << "no backend is named cuda";
}

// The environment is read once in a process, so each of the following tests runs in a separate one.

class EnvironmentDeathTest : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

/// Calls the op once, prints the outcome, and ends the process.
[[noreturn]] void call_and_exit(const char* variable, const char* value,
                                const Context& context = {}) {
  setenv(variable, value, 1);
  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("block_7"));
  const Status status = call.run(context);
  std::fprintf(stderr, "selected %s; %s", selected_in(context).c_str(), status.message().c_str());
  std::exit(static_cast<int>(status.code()));
}

TEST_F(EnvironmentDeathTest, ImplForcesAnImplementation) {
  EXPECT_EXIT(call_and_exit("TESSERA_IMPL", "cpu/reference"), testing::ExitedWithCode(0),
              "selected cpu/reference");
}

TEST_F(EnvironmentDeathTest, ContextGoesBeforeImpl) {
  Context context;
  context.implementation = "cpu/counting_sort";
  EXPECT_EXIT(call_and_exit("TESSERA_IMPL", "cpu/reference", context), testing::ExitedWithCode(0),
              "selected cpu/counting_sort");
}

TEST_F(EnvironmentDeathTest, UnknownImplIsRefused) {
  EXPECT_EXIT(call_and_exit("TESSERA_IMPL", "cpu/magic"),
              testing::ExitedWithCode(static_cast<int>(StatusCode::kUnsupported)),
              "align_block_size: implementation: expected cpu/counting_sort or cpu/reference, got "
              "cpu/magic, which TESSERA_IMPL asks for$");
}

TEST_F(EnvironmentDeathTest, ImplThatTheContextOverridesIsNotBlamed) {
  Context context;
  context.implementation = "cpu/magic";
  EXPECT_EXIT(call_and_exit("TESSERA_IMPL", "cpu/reference", context),
              testing::ExitedWithCode(static_cast<int>(StatusCode::kUnsupported)),
              "expected cpu/counting_sort or cpu/reference, got cpu/magic$");
}

TEST_F(EnvironmentDeathTest, VerboseSaysWhatRunsAndWhyNotTheRest) {
  EXPECT_EXIT(call_and_exit("TESSERA_VERBOSE", "1"), testing::ExitedWithCode(0),
              "tessera: align_block_size: 300 ids, 13 experts, block_size 7 on cpu.*"
              "runs cpu/counting_sort.*cpu/reference");
}

TEST_F(EnvironmentDeathTest, BadNumThreadsIsRefused) {
  for (const char* value : {"banana", "0", "-1", "2x", "99999999999"}) {
    EXPECT_EXIT(call_and_exit("TESSERA_NUM_THREADS", value),
                testing::ExitedWithCode(static_cast<int>(StatusCode::kInvalidValue)),
                "align_block_size: TESSERA_NUM_THREADS: expected an integer >= 1, got '" +
                    std::string(value) + "'");
  }
}

[[noreturn]] void compare_workspaces_and_exit() {
  setenv("TESSERA_NUM_THREADS", "3", 1);
  Context three;
  three.num_threads = 3;
  Context five;
  five.num_threads = 5;
  Context two;
  two.num_threads = 2;
  const std::size_t by_default = workspace_bytes(kLargeShape, Context{});
  const bool right = by_default == workspace_bytes(kLargeShape, three) &&
                     by_default == workspace_bytes(kLargeShape, five) &&
                     by_default > workspace_bytes(kLargeShape, two);
  std::exit(right ? 0 : 1);
}

TEST_F(EnvironmentDeathTest, NumThreadsIsTheDefaultAndCapsTheContext) {
  EXPECT_EXIT(compare_workspaces_and_exit(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace tessera::test
