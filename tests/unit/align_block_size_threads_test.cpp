// Calls from many threads, and on both sides of a fork.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"

namespace tessera::test {
namespace {

using Call = TypedCall<AlignBlockSizeArgs>;

contract::AlignBlockSizeCase parallel_case() { return *contract::find_case("many_broken_ids"); }

Context on_three_threads() {
  Context context;
  context.num_threads = 3;
  return context;
}

TEST(AlignBlockSizeThreads, CallsAtTheSameTimeDoNotDisturbOneAnother) {
  constexpr int kCallers = 5;
  constexpr int kCallsEach = 20;
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<Outputs> expected;
  for (int caller = 0; caller < kCallers; ++caller) {
    calls.push_back(std::make_unique<Call>(parallel_case(), caller));
    ASSERT_TRUE(calls.back()->run(on_three_threads()).ok());
    expected.push_back(calls.back()->outputs());
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      Call& call = *calls[caller];
      for (int i = 0; i < kCallsEach; ++i) {
        call.poison_outputs(kPoison);
        const bool right = call.run(on_three_threads()).ok() && call.damage().empty() &&
                           call.outputs() == expected[caller];
        if (!right) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

/// Runs a call in a forked child and tells whether it ended well with the right outputs.
testing::AssertionResult child_agrees(Call& call, const Outputs& expected) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a child that hangs must not outlive the test
    const bool right = call.run(on_three_threads()).ok() && call.outputs() == expected;
    _exit(right ? 0 : 1);
  }
  int status = -1;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    return testing::AssertionFailure() << "no child";
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "wait status " << status;
}

TEST(AlignBlockSizeThreads, TheThreadPoolSurvivesAFork) {
  Call call(parallel_case());
  ASSERT_TRUE(call.run(on_three_threads()).ok());
  const Outputs expected = call.outputs();
  call.poison_outputs(kPoison);
  EXPECT_TRUE(child_agrees(call, expected));
  ASSERT_TRUE(call.run(on_three_threads()).ok());
  EXPECT_TRUE(call.outputs() == expected);
}

TEST(AlignBlockSizeThreads, AForkMayHappenWhileAnotherThreadUsesThePool) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer ends a child that reuses the stack of a parent's thread";
#endif
  Call call(parallel_case());
  ASSERT_TRUE(call.run(on_three_threads()).ok());
  const Outputs expected = call.outputs();

  std::atomic<bool> stop{false};
  std::atomic<int> calls_made{0};
  std::thread busy([&] {
    Call other(parallel_case(), /*seed=*/2);
    while (!stop) {
      if (other.run(on_three_threads()).ok()) ++calls_made;
    }
  });
  while (calls_made == 0) std::this_thread::yield();
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(child_agrees(call, expected));
  stop = true;
  busy.join();
}

}  // namespace
}  // namespace tessera::test
