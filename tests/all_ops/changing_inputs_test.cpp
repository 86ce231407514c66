// Every input of every op changes while a call reads it: nothing but the outputs is written,
// nothing is read out of bounds, and the call ends. What it writes may be anything.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "changing_memory.hpp"
#include "guarded_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

/// Room for every index that a call could write beside an output.
constexpr std::size_t kWideGuards = 1 << 20;

class ChangingInputs : public OpTest {
 protected:
  /// Contents of an array that follow each other: what other seeds draw, and bytes that are no
  /// sensible value of any type.
  std::vector<std::vector<std::byte>> versions_of(const std::string& case_name,
                                                  const Argument& argument) {
    std::vector<std::vector<std::byte>> versions;
    for (const std::uint64_t seed : {1, 2, 3}) {
      const contract::CaseArguments made = contract().arguments(case_name, seed);
      const TensorView& view = view_in(made.args.get(), argument);
      const auto* const begin = static_cast<const std::byte*>(view.data);
      if (!versions.empty() && versions.front().size() != bytes_of(view)) continue;
      versions.emplace_back(begin, begin + bytes_of(view));
    }
    const std::size_t bytes = versions.front().size();
    for (const std::byte value : {std::byte{0x7f}, std::byte{0}, std::byte{0xff}}) {
      versions.emplace_back(bytes, value);
    }
    return versions;
  }

  void check(const std::string& case_name, const Argument& argument) {
    const contract::CaseArguments made = contract().arguments(case_name, 1);
    std::vector<std::vector<std::byte>> versions = versions_of(case_name, argument);
    for (const std::string& implementation : implementations_of(made)) {
      // From the drawn contents to the others, and the other way round.
      for (int order = 0; order < 2; ++order) {
        SCOPED_TRACE(case_name + ", " + argument.name + ", " + implementation);
        ChangingMemory memory(versions);
        GuardedCall call(made, 1, kWideGuards);
        view_in(call.args(), argument).data = memory.data();
        Context context;
        context.implementation = implementation;
        context.num_threads = 1;
        ASSERT_TRUE(memory.survives([&] { EXPECT_TRUE(call.run(context).ok()); }));
        EXPECT_EQ(call.damage(), "");
        std::ranges::reverse(versions);
      }
    }
  }
};

TESSERA_FOR_ALL_OPS(ChangingInputs);

TEST_P(ChangingInputs, AreReadSafely) {
  // Memory changes where a walk begins anew, which takes two pages.
  constexpr std::size_t kTwoPages = 2 * ChangingMemory::kPageBytes;
  constexpr int kCasesEach = 6;
  std::map<std::string, int> num_cases;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const std::string case_name = contract::random_case_name(seed, 8000);
    const contract::CaseArguments made = contract().arguments(case_name, 1);
    if (num_elements_of(made) > 100000) continue;
    for (const Argument& argument : op().schema->arguments) {
      if (!argument.is_array() || argument.is_output()) continue;
      const TensorView& view = view_in(made.args.get(), argument);
      if (!view.given() || bytes_of(view) <= kTwoPages || num_cases[argument.name] >= kCasesEach) {
        continue;
      }
      ++num_cases[argument.name];
      check(case_name, argument);
    }
  }
  EXPECT_FALSE(num_cases.empty());
  for (const auto& [argument, count] : num_cases) {
    RecordProperty(argument, count);
    EXPECT_GT(count, 0) << argument;
  }
}

}  // namespace
}  // namespace tessera::test
