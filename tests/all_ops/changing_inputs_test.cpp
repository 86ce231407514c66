// Every input of every op changes while a call reads it: nothing but the outputs is written,
// nothing is read out of bounds, and the call ends. What it writes may be anything.
#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "changing_memory.hpp"
#include "guarded_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

/// Room for every index that a call could write beside an output.
constexpr std::size_t kWideGuards = 1 << 17;

class ChangingInputs : public OpTest {
 protected:
  /// Contents of an array that follow each other: what a seed draws, then one element of it over
  /// and over, which moves most of what was counted; and bytes that are no sensible value of any
  /// type.
  std::vector<std::vector<std::byte>> versions_of(const std::string& case_name,
                                                  const Argument& argument) {
    std::vector<std::vector<std::byte>> versions;
    for (const std::uint64_t seed : {1, 2, 3}) {
      const contract::CaseArguments made = contract().arguments(case_name, seed);
      const TensorView& view = view_in(made.args.get(), argument);
      const std::span drawn(static_cast<const std::byte*>(view.data), bytes_of(view));
      if (!versions.empty() && versions.front().size() != drawn.size()) continue;
      versions.emplace_back(drawn.begin(), drawn.end());
      const std::size_t width = element_bytes(view);
      const std::size_t element = drawn.size() / width / (seed + 1) * width;
      std::vector<std::byte>& repeated = versions.emplace_back(drawn.size());
      for (std::size_t i = 0; i < drawn.size(); ++i) repeated[i] = drawn[element + i % width];
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

/// Integers determine which addresses are read or written; so do the numbers that an op ranks,
/// whose outputs are integers.
bool decides_addresses(const Schema& schema, const Argument& argument) {
  const auto has_integers = [](const Argument& a) { return (a.dtypes & dtypes::kIntegers) != 0; };
  if (!argument.is_array() || argument.is_output()) return false;
  return has_integers(argument) || std::ranges::any_of(schema.arguments, [&](const Argument& a) {
           return a.is_array() && a.is_output() && has_integers(a);
         });
}

TEST_P(ChangingInputs, AreReadSafely) {
  const auto decides = [&](const Argument& argument) {
    return decides_addresses(*op().schema, argument);
  };
  if (std::ranges::none_of(op().schema->arguments, decides)) {
    GTEST_SKIP() << name() << " has no input that decides addresses";
  }
  // Memory changes where a walk begins anew, which takes two pages.
  constexpr std::size_t kTwoPages = 2 * ChangingMemory::kPageBytes;
  constexpr std::size_t kCasesEach = 6;
  // Cases with the shortest outputs come first: an output without padding hides no stray write.
  std::map<std::string, std::multimap<std::int64_t, std::string>> cases;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const std::string case_name = contract::random_case_name(seed, 8000);
    const contract::CaseArguments made = contract().arguments(case_name, 1);
    for (const Argument& argument : op().schema->arguments) {
      if (!decides(argument)) continue;
      const TensorView& view = view_in(made.args.get(), argument);
      if (!view.given() || bytes_of(view) <= kTwoPages) continue;
      cases[std::string(argument.name)].emplace(
          static_cast<double>(num_elements_of(made)) / static_cast<double>(view.num_elements),
          case_name);
    }
  }
  EXPECT_FALSE(cases.empty());
  for (const auto& [argument, names] : cases) {
    RecordProperty(argument, static_cast<int>(names.size()));
    auto next = names.begin();
    for (std::size_t k = 0; k < kCasesEach && next != names.end(); ++k, ++next) {
      check(next->second, argument_named(*op().schema, argument));
    }
  }
}

}  // namespace
}  // namespace tessera::test
