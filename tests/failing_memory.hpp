// Allocations that fail. failing_memory.cpp replaces operator new of a test program, and so of the
// library in it, by one that can be made to fail.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <type_traits>

#include "tessera/status.hpp"
#include "tessera/tessera.h"

namespace tessera::test {

/// Which allocations of the calling thread fail.
struct Failure {
  bool armed = false;
  bool once = false;  ///< only one of them, else all from the first on
  int succeed = 0;    ///< how many succeed before
  int failed = 0;     ///< how many have failed
};

// Without a function that initialises it, which UBSan takes for a null pointer.
extern thread_local constinit Failure failure;

struct Result {
  int code = -1;
  std::string message;
};

/// Makes a call of the C or C++ API whose allocations fail as `when` says, on a new thread, which
/// has no last message yet.
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

/// Expects that `call` returns `code` if memory suffices; otherwise that, or kRuntimeError without
/// having written anything. Returns how many of its allocations can fail.
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
      // A call may go on without the memory, for example with fewer threads.
      if (result.code == static_cast<int>(code)) continue;
      EXPECT_EQ(result.code, static_cast<int>(StatusCode::kRuntimeError)) << "allocation " << n;
      EXPECT_EQ(result.message,
                op + ": memory: expected enough to finish the call, got an allocation that failed");
      EXPECT_TRUE(untouched()) << "allocation " << n;
    }
  }
  return num_allocations;
}

}  // namespace tessera::test
