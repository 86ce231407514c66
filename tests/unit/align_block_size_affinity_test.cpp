// The affinity of the process may change between the size query and the call.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "tessera/info.hpp"

namespace tessera::test {
namespace {

cpu_set_t own_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof(cores), &cores);
  return cores;
}

void confine(const cpu_set_t& cores) { ASSERT_EQ(sched_setaffinity(0, sizeof(cores), &cores), 0); }

cpu_set_t first_of(const cpu_set_t& cores) {
  cpu_set_t first;
  CPU_ZERO(&first);
  int core = 0;
  while (!CPU_ISSET(core, &cores)) ++core;
  CPU_SET(core, &first);
  return first;
}

std::ptrdiff_t num_threads_of_process() {
  namespace fs = std::filesystem;
  return std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator());
}

/// Queries under one affinity and calls under another, with exactly the workspace that the query
/// named. Tells how many threads the call added to the process, or -1 if it went wrong.
std::ptrdiff_t threads_added(const cpu_set_t& at_query, const cpu_set_t& at_call,
                             int num_threads = 0) {
  TypedCall<AlignBlockSizeArgs> call(*contract::find_case("many_broken_ids")),
      expected(*contract::find_case("many_broken_ids"));
  Context context;
  context.num_threads = num_threads;
  confine(at_query);
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeShape shape{call.args.topk_ids.num_elements, call.args.block_size,
                                  call.args.num_experts, false, false};
  if (!align_block_size_sizes(shape, context, &sizes).ok()) return -1;
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  context.workspace = workspace.span();
  const std::ptrdiff_t before = num_threads_of_process();
  confine(at_call);
  if (!align_block_size(call.args, context).ok() || !workspace.intact()) return -1;
  const std::ptrdiff_t added = num_threads_of_process() - before;
  Context alone;
  alone.implementation = "cpu/reference";
  if (!expected.run(alone).ok() || call.outputs() != expected.outputs()) return -1;
  return call.damage().empty() ? added : -1;
}

void expect_in_child(const char* what, std::ptrdiff_t expected,
                     const std::function<std::ptrdiff_t()>& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    _exit(static_cast<int>(body()) & 0xff);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << what << ": wait status " << status;
  EXPECT_EQ(WEXITSTATUS(status), static_cast<int>(expected)) << what;
}

class AlignBlockSizeAffinity : public testing::Test {
 protected:
  void SetUp() override {
    const std::string threads = backends().front().detail;
    if (threads == "up to 1 thread(s)") GTEST_SKIP() << "needs two cores, and no lower CPU quota";
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "the thread sanitizer has threads of its own";
#endif
  }

  const cpu_set_t all_ = own_cores();
  const cpu_set_t one_ = first_of(all_);
};

TEST_F(AlignBlockSizeAffinity, MayChangeBetweenQueryAndCall) {
  expect_in_child("one core at the query, all at the call", 1,
                  [&] { return std::min<std::ptrdiff_t>(threads_added(one_, all_), 1); });
  expect_in_child("all cores at the query, one at the call", 0,
                  [&] { return threads_added(all_, one_); });
}

TEST_F(AlignBlockSizeAffinity, DoesNotLimitWhatACallAsksFor) {
  expect_in_child("three threads on one core", 2, [&] { return threads_added(one_, one_, 3); });
}

TEST_F(AlignBlockSizeAffinity, OfAPinnedFirstCallerIsNotThatOfTheProcess) {
  expect_in_child("the call of a pinned thread", 1, [&] {
    std::ptrdiff_t added = -1;
    std::thread([&] { added = threads_added(one_, one_); }).join();
    return std::min<std::ptrdiff_t>(added, 1);
  });
}

}  // namespace
}  // namespace tessera::test
