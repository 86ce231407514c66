// Memory runs out at any allocation of any op's functions: the status says so, nothing is written,
// and no exception leaves the library.
#include <string>
#include <vector>

#include "bad_arguments.hpp"
#include "failing_memory.hpp"
#include "guarded_call.hpp"
#include "malformed_calls.hpp"
#include "named_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

class OpOutOfMemory : public OpTest {
 protected:
  /// Calls the op, from C++ and from C, and fails each allocation; returns how many C++ has.
  int fail_each(const std::string& what, GuardedCall& call, const Context& context,
                StatusCode code) {
    if (can_be_named(op(), call.args(), context)) {
      const NamedCall named(op(), call.args(), context);
      fail_each(what + " in C", name(), call, code, [&] { return tessera_call(&named.args); });
    }
    return fail_each(what, name(), call, code, [&] { return op().call(call.args(), context); });
  }

  template <typename Run>
  int fail_each(const std::string& what, const std::string& named, GuardedCall& call,
                StatusCode code, const Run& run) {
    return expect_no_exception(
        what, named, code,
        [&] {
          call.poison_outputs(kPoison);
          return run();
        },
        [&] { return call.outputs_untouched() && call.damage().empty(); });
  }
};

TESSERA_FOR_ALL_OPS(OpOutOfMemory);

TEST_P(OpOutOfMemory, OfCallsThatRun) {
  int num_cases = 0;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const contract::CaseArguments made =
        contract().arguments(contract::random_case_name(seed, 200000), seed);
    for (const std::string& implementation : implementations_of(made)) {
      GuardedCall call(made, seed);
      Context context;
      context.num_threads = 3;
      context.implementation = implementation;
      OpSizes sizes;
      ASSERT_TRUE(op().sizes(call.args(), context, &sizes).ok());
      GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
      context.workspace = workspace.span();
      fail_each(implementation, call, context, StatusCode::kOk);
      EXPECT_TRUE(workspace.intact());
      for (const contract::Violation& violation : contract().check(call.args())) {
        ADD_FAILURE() << violation.message;
      }
      ++num_cases;
    }
  }
  EXPECT_GE(num_cases, 12);
}

TEST_P(OpOutOfMemory, OfCallsThatAreRefused) {
  GuardedCall call(full_arguments(contract()));
  OpSizes sizes;
  ASSERT_TRUE(op().sizes(call.args(), Context{}, &sizes).ok());
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  Context context;
  context.workspace = workspace.span();
  for (const BadArgument& bad : bad_arguments(call)) {
    const auto* const begin = static_cast<const std::byte*>(call.args());
    const std::vector<std::byte> good(begin, begin + op().args_bytes);
    bad.spoil(call.args());
    EXPECT_GT(fail_each(bad.what, call, context, bad.code), 0);
    std::ranges::copy(good, static_cast<std::byte*>(call.args()));
  }
  Context unknown = context;
  unknown.implementation = "cpu/magic";
  EXPECT_GT(
      fail_each("an implementation that is not there", call, unknown, StatusCode::kUnsupported), 0);
  TensorView& first = view_in(
      call.args(), *std::ranges::find_if(op().schema->arguments, [](const Argument& argument) {
        return argument.is_output();
      }));
  first.data = context.workspace.data();
  if (sizes.workspace_bytes > 0) {
    EXPECT_GT(fail_each("overlap", call, context, StatusCode::kInvalidValue), 0);
  }
}

TEST_P(OpOutOfMemory, OfMalformedCallsInC) {
  GuardedCall call(full_arguments(contract()));
  for (const MalformedCall& malformed : malformed_calls(op())) {
    NamedCall named(op(), call.args(), Context{});
    malformed.spoil(named);
    EXPECT_GT(fail_each(malformed.message, malformed.names_op ? name() : "call", call,
                        malformed.code, [&] { return tessera_call(&named.args); }),
              0);
    if (!malformed.by_query) continue;
    EXPECT_GT(fail_each(malformed.message, malformed.names_op ? name() : "query", call,
                        malformed.code, [&] { return tessera_query(&named.args); }),
              0);
  }
}

TEST_P(OpOutOfMemory, OfQueriesInC) {
  const contract::CaseArguments made = full_arguments(contract());
  NamedCall named(op(), made.args.get(), Context{});
  constexpr std::size_t kBefore = 12345;
  const auto query = [&] {
    named.args.workspace_bytes = kBefore;  // which a query that succeeded has written
    return tessera_query(&named.args);
  };
  const auto untouched = [&] { return named.args.workspace_bytes == kBefore; };
  named.args.implementation = "cpu/magic";
  EXPECT_GT(expect_no_exception("unknown implementation", name(), StatusCode::kUnsupported, query,
                                untouched),
            0);
  EXPECT_TRUE(untouched());
  named.args.implementation = nullptr;
  expect_no_exception("query", name(), StatusCode::kOk, query, untouched);
}

TEST_P(OpOutOfMemory, OfQueries) {
  const contract::CaseArguments made = full_arguments(contract());
  const auto expect = [&](const char* what, StatusCode code, const auto& query) {
    EXPECT_GT(expect_no_exception(what, name(), code, query), 0);
  };
  OpSizes sizes;
  std::vector<ImplementationReport> reports;
  Context unknown;
  unknown.implementation = "cpu/magic";
  Context metal;
  metal.device = {kDLMetal, 0};
  for (const Context& context : {unknown, metal}) {
    expect("sizes", StatusCode::kUnsupported,
           [&] { return op().sizes(made.args.get(), context, &sizes); });
  }
  expect("explain", StatusCode::kOk,
         [&] { return op().explain(made.args.get(), Context{}, &reports); });
  for (const Argument& argument : op().schema->arguments) {
    if (argument.is_array() || argument.kind == Argument::Kind::kFlag) continue;
    // A floating-point number has no limits in the table.
    if (argument.low <= std::numeric_limits<std::int32_t>::min()) continue;
    const std::int64_t good = number_in(made.args.get(), argument);
    set_number(made.args.get(), argument, argument.low - 1);
    expect(argument.name, StatusCode::kInvalidValue,
           [&] { return op().sizes(made.args.get(), Context{}, &sizes); });
    expect(argument.name, StatusCode::kInvalidValue,
           [&] { return op().explain(made.args.get(), Context{}, &reports); });
    set_number(made.args.get(), argument, good);
  }
}

}  // namespace
}  // namespace tessera::test
