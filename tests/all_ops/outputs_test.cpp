// Runs every implementation of every op on every case: the contract holds, and the bits equal those
// of the reference, or, where the contract does not fix them, of the first call, whatever the
// number of threads, the contents of memory and the addresses.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "guarded_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

/// Circumstances of a call that must not change its outputs.
struct Surroundings {
  int num_threads;
  std::byte poison;
};

constexpr Surroundings kSurroundings[] = {
    {1, std::byte{0xa5}}, {2, std::byte{0x00}}, {3, std::byte{0xff}}, {8, std::byte{0x01}}};

/// Short random cases of an op that multiplies matrices: under a sanitizer each takes long.
/// Thousands of them are in `make test-long`.
constexpr std::uint64_t kNumProducts = 200;

class AllOps : public OpTest {
 protected:
  void expect_no_violation(const GuardedCall& call) {
    for (const contract::Violation& violation : contract().check(call.args())) {
      ADD_FAILURE() << violation.message;
    }
  }

  void expect_contract_holds(const std::string& case_name, std::uint64_t seed,
                             std::span<const Surroundings> all_surroundings = kSurroundings) {
    SCOPED_TRACE(name() + ", case " + case_name + ", seed " + std::to_string(seed));
    const contract::CaseArguments made = contract().arguments(case_name, seed);
    const std::vector<std::string> implementations = implementations_of(made);
    ASSERT_FALSE(implementations.empty());
    GuardedCall call(made, seed);
    Context context;
    context.implementation = implementations.back();  // the reference
    const Status status = call.run(context);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(call.damage(), "");
    Outputs expected = call.outputs();
    expect_no_violation(call);
    for (const std::string& implementation : implementations) {
      context.implementation = implementation;
      if (!contract().fixes_bits) {  // the implementation's own, from its first call on
        ASSERT_TRUE(call.run(context).ok());
        expected = call.outputs();
        expect_no_violation(call);
      }
      for (const Surroundings& surroundings : all_surroundings) {
        SCOPED_TRACE(implementation + ", " + std::to_string(surroundings.num_threads) + " threads");
        context.num_threads = surroundings.num_threads;
        call.poison_outputs(surroundings.poison);
        const Status again = call.run(context);
        ASSERT_TRUE(again.ok()) << again.message();
        EXPECT_EQ(call.damage(), "");
        if (call.outputs() == expected) continue;
        ADD_FAILURE() << difference(expected, call.outputs());
        expect_no_violation(call);
      }
    }
  }
};

TESSERA_FOR_ALL_OPS(AllOps);

TEST_P(AllOps, KeepTheContractOnTheTable) {
  for (const std::string& name : contract().case_names()) expect_contract_holds(name, 1);
}

TEST_P(AllOps, KeepTheContractOnShortRandomCases) {
  // Too short for threads, so that two surroundings in turn are enough for each.
  const std::uint64_t num_cases = contract().fixes_bits ? 2000 : kNumProducts;
  for (std::uint64_t seed = 0; seed < num_cases && !HasFailure(); ++seed) {
    expect_contract_holds(contract::random_case_name(seed, 5000), seed,
                          std::span(kSurroundings).subspan(seed % 3, 2));
  }
}

TEST_P(AllOps, KeepTheContractOnRandomCasesWorthThreads) {
  const std::uint64_t num_cases = contract().fixes_bits ? 60 : kNumProducts / 20;
  for (std::uint64_t seed = 0; seed < num_cases && !HasFailure(); ++seed) {
    expect_contract_holds(contract::random_case_name(seed, 300000), seed);
  }
}

TEST_P(AllOps, WriteOptionalOutputsOnlyWhereTheyAreGiven) {
  const contract::CaseArguments made = full_arguments(contract());
  std::vector<const Argument*> optional;
  for (const Argument& argument : op().schema->arguments) {
    if (argument.role == Argument::Role::kOptionalOutput) optional.push_back(&argument);
  }
  for (const std::string& implementation : implementations_of(made)) {
    Context context;
    context.implementation = implementation;
    GuardedCall all(made);
    ASSERT_TRUE(all.run(context).ok());
    const Outputs written = all.outputs();
    for (std::uint64_t left_out = 1; left_out < std::uint64_t{1} << optional.size(); ++left_out) {
      GuardedCall call(made);
      Outputs expected = written;
      const Outputs poison = call.outputs();
      for (std::size_t i = 0; i < optional.size(); ++i) {
        if ((left_out >> i & 1) == 0) continue;
        view_in(call.args(), *optional[i]) = {};
        expected.bytes[optional[i]->name] = poison.bytes.at(optional[i]->name);
      }
      ASSERT_TRUE(call.run(context).ok());
      EXPECT_EQ(difference(expected, call.outputs()), "") << implementation << ", " << left_out;
    }
  }
}

TEST_P(AllOps, NeedNeitherMemoryNorStridesForArraysWithoutElements) {
  int num_cases = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const std::string case_name = contract::random_case_name(seed, 20);
    const contract::CaseArguments made = contract().arguments(case_name, 1);
    GuardedCall call(made);
    int num_empty = 0;
    for (const Argument& argument : op().schema->arguments) {
      if (!argument.is_array()) continue;
      TensorView& view = view_in(call.args(), argument);
      if (!view.given() || view.num_elements != 0) continue;
      view.data = nullptr;
      // Frameworks give such an array strides of any kind.
      std::ranges::fill(view.strides, std::numeric_limits<std::int64_t>::max());
      ++num_empty;
    }
    if (num_empty == 0) continue;
    for (const std::string& implementation : implementations_of(made)) {
      SCOPED_TRACE(case_name + ", " + implementation);
      Context context;
      context.implementation = implementation;
      const Status status = call.run(context);
      ASSERT_TRUE(status.ok()) << status.message();
      expect_no_violation(call);
      ++num_cases;
    }
  }
  EXPECT_GT(num_cases, 0) << "no random case has an empty array";
}

}  // namespace
}  // namespace tessera::test
