// Makes every argument of every op wrong in every way that the table allows: the call is refused
// with the right code and a message that names op and argument, before anything is written.
#include <set>
#include <string>

#include "bad_arguments.hpp"
#include "guarded_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

class Arguments : public OpTest {
 protected:
  Arguments() : call_(full_arguments(contract())) {
    OpSizes sizes;
    const Status status = op().sizes(call_.args(), Context{}, &sizes);
    EXPECT_TRUE(status.ok()) << status.message();
    workspace_bytes_ = sizes.workspace_bytes;
  }

  /// Calls with a guarded workspace, which has to stay as it is.
  Status refused_call(Context context, std::size_t workspace_bytes) {
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(workspace_bytes));
    context.workspace = workspace.span();
    const Status status = op().call(call_.args(), context);
    EXPECT_TRUE(call_.outputs_untouched());
    EXPECT_EQ(call_.damage(), "");
    EXPECT_TRUE(workspace.untouched() && workspace.intact());
    return status;
  }

  GuardedCall call_;
  std::size_t workspace_bytes_ = 0;
};

TESSERA_FOR_ALL_OPS(Arguments);

TEST_P(Arguments, ThatTheOtherTestsSpoilAreGood) {
  const Status status = call_.run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(call_.outputs_untouched());
  EXPECT_EQ(call_.damage(), "");
}

TEST_P(Arguments, AreRefusedOneByOneBeforeAnyWrite) {
  std::set<std::string> arguments;
  for (const BadArgument& bad : bad_arguments(call_)) {
    SCOPED_TRACE(bad.what);
    const auto* const begin = static_cast<const std::byte*>(call_.args());
    const std::vector<std::byte> good(begin, begin + op().args_bytes);
    bad.spoil(call_.args());
    const Status status = refused_call({}, workspace_bytes_);
    EXPECT_EQ(status.code(), bad.code);
    EXPECT_TRUE(has_house_form(status.message(), name(), bad)) << status.message();
    std::ranges::copy(good, static_cast<std::byte*>(call_.args()));
    arguments.insert(bad.argument.substr(0, bad.argument.find('.')));
  }
  // Every argument has been spoiled, except flags and numbers without limits: all their values are
  // right.
  for (const Argument& argument : op().schema->arguments) {
    const bool has_limits = argument.kind == Argument::Kind::kInt64 &&
                            (argument.low != std::numeric_limits<std::int64_t>::min() ||
                             argument.high != std::numeric_limits<std::int64_t>::max());
    EXPECT_TRUE(arguments.contains(argument.name) || (!argument.is_array() && !has_limits))
        << argument.name;
  }
  EXPECT_TRUE(call_.run().ok());
}

TEST_P(Arguments, AWorkspaceOneByteShortIsRefused) {
  for (const std::uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    const contract::CaseArguments made =
        contract().arguments(contract::random_case_name(seed, 20000), seed);
    for (const std::string& implementation : implementations_of(made)) {
      GuardedCall call(made);
      Context context;
      context.implementation = implementation;
      OpSizes sizes;
      ASSERT_TRUE(op().sizes(call.args(), context, &sizes).ok());
      if (sizes.workspace_bytes == 0) continue;
      GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes) - 1);
      context.workspace = workspace.span();
      const Status status = op().call(call.args(), context);
      EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
      EXPECT_EQ(status.message(), name() + ": workspace: expected at least " +
                                      std::to_string(sizes.workspace_bytes) + " bytes, got " +
                                      std::to_string(sizes.workspace_bytes - 1));
      EXPECT_TRUE(call.outputs_untouched());
      EXPECT_TRUE(workspace.untouched() && workspace.intact());
    }
  }
}

TEST_P(Arguments, OfTheContextAreRefused) {
  Context context;
  context.num_threads = -2;
  EXPECT_EQ(refused_call(context, workspace_bytes_).message(),
            name() + ": num_threads: expected an integer >= 1, or 0 for automatic, got -2");

  context = {};
  context.implementation = "cpu/magic";
  Status status = refused_call(context, workspace_bytes_);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_TRUE(status.message().starts_with(name() + ": implementation: expected cpu/"))
      << status.message();
  EXPECT_TRUE(status.message().ends_with("cpu/reference, got cpu/magic")) << status.message();
}

TEST_P(Arguments, ADeviceWithoutABackendIsRefused) {
  Context context;
  context.device = {kDLMetal, 0};
  for (const Argument& argument : op().schema->arguments) {
    if (argument.is_array()) view_in(call_.args(), argument).device = context.device;
  }
  const Status status = refused_call(context, workspace_bytes_);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_TRUE(status.message().starts_with(name() + ": implementation: expected "));
  EXPECT_NE(status.message().find("Tessera has no backend for it"), std::string::npos)
      << status.message();
  OpSizes sizes;
  sizes.workspace_bytes = 12345;
  EXPECT_EQ(op().sizes(call_.args(), context, &sizes).code(), StatusCode::kUnsupported);
  EXPECT_EQ(sizes.workspace_bytes, 12345U);
}

TEST_P(Arguments, AreRefusedByTheQueryWhereItReadsThem) {
  for (const BadArgument& bad : bad_arguments(call_)) {
    SCOPED_TRACE(bad.what);
    const Argument& argument =
        argument_named(*op().schema, bad.argument.substr(0, bad.argument.find('.')));
    const bool is_length = bad.argument != argument.name &&
                           bad.argument.find(".dtype") == std::string::npos &&
                           argument.gives_symbols;
    const bool reads =
        !argument.is_array() || (is_length && (bad.argument.ends_with(".num_elements") ||
                                               bad.argument.find(".shape[") != std::string::npos));
    if (!reads) continue;
    const auto* const begin = static_cast<const std::byte*>(call_.args());
    const std::vector<std::byte> good(begin, begin + op().args_bytes);
    bad.spoil(call_.args());
    OpSizes sizes;
    sizes.workspace_bytes = 12345;
    const Status status = op().sizes(call_.args(), Context{}, &sizes);
    EXPECT_EQ(status.code(), bad.code);
    EXPECT_TRUE(has_house_form(status.message(), name(), bad)) << status.message();
    EXPECT_EQ(sizes.workspace_bytes, 12345U);
    std::ranges::copy(good, static_cast<std::byte*>(call_.args()));
  }
}

}  // namespace
}  // namespace tessera::test
