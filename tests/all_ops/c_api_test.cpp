// Every op through tessera_query and tessera_call: the sizes, outputs and messages of the C++ API,
// and messages of their own for what only C can get wrong.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "bad_arguments.hpp"
#include "guarded_call.hpp"
#include "malformed_calls.hpp"
#include "named_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

std::string text(const Status& status) {
  return std::to_string(static_cast<int>(status.code())) + " " + status.message();
}

/// All that a call points to and a query may write.
std::string image_of(const NamedCall& call) {
  std::string bytes(reinterpret_cast<const char*>(&call.args), sizeof(call.args));
  return bytes.append(reinterpret_cast<const char*>(call.arguments.data()),
                      call.arguments.size() * sizeof(tessera_argument));
}

class CApi : public OpTest {
 protected:
  const Argument& row_of(const tessera_argument& argument) {
    return argument_named(*op().schema, argument.name);
  }

  /// Makes an equivalent call: in another order, without what has its default, without the
  /// strides of contiguous arrays, and with other values for flags that are set.
  void rephrase(NamedCall& call, const void* args) {
    std::erase_if(call.arguments, [&](const tessera_argument& argument) {
      const Argument& row = row_of(argument);
      tessera_argument by_default{};
      if (!row.is_array()) set_value(number_in(op().default_args, row), row, &by_default);
      return !row.is_array() && argument.value == by_default.value &&
             std::memcmp(&argument.real, &by_default.real, sizeof(double)) == 0;
    });
    for (tessera_argument& argument : call.arguments) {
      const Argument& row = row_of(argument);
      if (row.kind == Argument::Kind::kFlag) argument.value *= std::int64_t{-1} << 40;
      if (!row.is_array() || !view_in(args, row).contiguous) continue;
      std::ranges::fill(argument.strides, 0);
    }
    std::ranges::reverse(call.arguments);
    call.args.num_arguments = call.arguments.size();
  }

  /// Whether the shape is the smallest that the table asks of an output.
  bool is_smallest(const tessera_argument& output, const OpSizes& sizes) {
    const Argument& row = row_of(output);
    if (output.ndim != num_lengths(row)) return false;
    for (int axis = 0; axis < output.ndim; ++axis) {
      const Length& length = row.extents.lengths[axis];
      const std::int64_t wanted =
          length.symbol < 0 ? length.constant : sizes.symbols[length.symbol];
      if (output.shape[axis] != wanted) return false;
    }
    return std::ranges::all_of(output.strides, [](std::int64_t stride) { return stride == 0; });
  }
};

TESSERA_FOR_ALL_OPS(CApi);

TEST_P(CApi, GivesTheOutputsOfTheCppApi) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const std::string case_name = contract::random_case_name(seed, 5000);
    SCOPED_TRACE(case_name);
    const contract::CaseArguments made = contract().arguments(case_name, seed);
    for (const std::string& implementation : implementations_of(made)) {
      Context context;
      context.implementation = implementation;
      context.num_threads = 1 + static_cast<int>(seed % 3);
      GuardedCall cpp(made, seed), plain_c(made, seed);
      const Status by_cpp = cpp.run(context);
      ASSERT_TRUE(by_cpp.ok()) << by_cpp.message();
      OpSizes sizes;
      ASSERT_TRUE(op().sizes(plain_c.args(), context, &sizes).ok());
      GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
      context.workspace = workspace.span();
      NamedCall call(op(), plain_c.args(), context);
      if (seed % 2 != 0) rephrase(call, plain_c.args());
      const Status status = call.run();
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_STREQ(tessera_last_error(), "");
      EXPECT_EQ(difference(cpp.outputs(), plain_c.outputs()), "");
      EXPECT_EQ(plain_c.damage(), "");
      EXPECT_TRUE(workspace.intact());
    }
  }
}

TEST_P(CApi, AQueryMakesTheOutputsOfACall) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const contract::CaseArguments made =
        contract().arguments(contract::random_case_name(seed, 2000), seed);
    OpSizes sizes;
    ASSERT_TRUE(op().sizes(made.args.get(), Context{}, &sizes).ok());
    NamedCall call(op(), made.args.get(), Context{});
    // A query reads nothing of an output but its name, and no array's memory.
    const std::vector<tessera_argument> given = call.arguments;
    for (tessera_argument& argument : call.arguments) {
      const char* const argument_name = argument.name;
      const Argument& row = row_of(argument);
      if (row.is_output()) std::memset(&argument, seed % 2 == 0 ? 0 : 0xa5, sizeof(argument));
      argument.name = argument_name;
      if (row.is_array()) argument.data = reinterpret_cast<void*>(1);
    }
    const Status query = call.query();
    ASSERT_TRUE(query.ok()) << query.message();
    EXPECT_EQ(call.args.workspace_bytes, sizes.workspace_bytes);

    std::vector<std::unique_ptr<GuardedBuffer<std::byte>>> buffers;
    for (std::size_t i = 0; i < given.size(); ++i) {
      tessera_argument& argument = call.arguments[i];
      const Argument& row = row_of(argument);
      if (!row.is_output()) {
        argument.data = given[i].data;
        continue;
      }
      EXPECT_TRUE(is_smallest(argument, sizes)) << argument.name;
      TensorView& view = view_in(made.args.get(), row);
      ASSERT_LT(argument.dtype, dtypes::kNumDtypes);
      EXPECT_EQ(dtypes::set_of(dtypes::kAll[argument.dtype].dtype), dtypes::set_of(view.dtype));
      DLTensor tensor{nullptr,
                      kHostDevice,
                      argument.ndim,
                      dtypes::kAll[argument.dtype].dtype,
                      argument.shape,
                      nullptr,
                      0};
      view = TensorView::of(tensor);
      buffers.push_back(
          std::make_unique<GuardedBuffer<std::byte>>(static_cast<std::int64_t>(bytes_of(view))));
      view.data = argument.data = buffers.back()->data();
      argument.value = 0;
      argument.real = 0;
    }
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(call.args.workspace_bytes));
    call.args.workspace = workspace.data();
    const Status status = call.run();
    ASSERT_TRUE(status.ok()) << status.message();
    for (const contract::Violation& violation : contract().check(made.args.get())) {
      ADD_FAILURE() << violation.message;
    }
    EXPECT_TRUE(workspace.intact());
    for (const auto& buffer : buffers) EXPECT_TRUE(buffer->intact());
  }
}

TEST_P(CApi, RefusesWithTheMessagesOfTheCppApi) {
  GuardedCall call(full_arguments(contract()));
  OpSizes sizes;
  ASSERT_TRUE(op().sizes(call.args(), Context{}, &sizes).ok());
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  const auto compare = [&](const Context& context) {
    const Status expected = op().call(call.args(), context);
    EXPECT_FALSE(expected.ok());
    NamedCall named(op(), call.args(), context);
    EXPECT_EQ(text(named.run()), text(expected));
    EXPECT_TRUE(call.outputs_untouched());
    EXPECT_EQ(call.damage(), "");
    EXPECT_TRUE(workspace.untouched() && workspace.intact());

    const Status expected_query = op().sizes(call.args(), context, &sizes);
    const std::string before = image_of(named);
    EXPECT_EQ(text(named.query()), text(expected_query));
    if (!expected_query.ok()) {
      EXPECT_EQ(image_of(named), before);
    }
  };

  Context good;
  good.workspace = workspace.span();
  const auto* const begin = static_cast<const std::byte*>(call.args());
  const std::vector<std::byte> args(begin, begin + op().args_bytes);
  std::size_t num_compared = 0;
  const std::vector<BadArgument> all = bad_arguments(call);
  for (const BadArgument& bad : all) {
    SCOPED_TRACE(bad.what);
    bad.spoil(call.args());
    if (can_be_named(op(), call.args(), good)) {
      compare(good);
      ++num_compared;
    }
    std::ranges::copy(args, static_cast<std::byte*>(call.args()));
  }
  EXPECT_GT(num_compared, all.size() / 2);

  Context context = good;
  context.num_threads = -2;
  compare(context);
  context = good;
  context.implementation = "cpu/magic";
  compare(context);
  context = good;
  if (context.workspace.empty()) {
    context.workspace = {static_cast<std::byte*>(call.args()), SIZE_MAX};  // past the last address
  } else {
    context.workspace = context.workspace.first(context.workspace.size() - 1);
  }
  compare(context);
  context = good;
  context.device = {kDLCUDA, 63};
  for (const Argument& argument : op().schema->arguments) {
    if (argument.is_array()) view_in(call.args(), argument).device = context.device;
  }
  compare(context);
}

TEST_P(CApi, RefusesMalformedCalls) {
  GuardedCall call(full_arguments(contract()));
  for (const MalformedCall& malformed : malformed_calls(op())) {
    SCOPED_TRACE(malformed.message);
    for (const bool is_query : {false, true}) {
      if (is_query && !malformed.by_query) continue;
      NamedCall named(op(), call.args(), Context{});
      malformed.spoil(named);
      const std::string before = image_of(named);
      const Status status = is_query ? named.query() : named.run();
      EXPECT_EQ(status.code(), malformed.code);
      EXPECT_EQ(status.message(), (malformed.names_op ? name()
                                   : is_query         ? "query"
                                                      : "call") +
                                      ": " + malformed.message);
      EXPECT_EQ(image_of(named), before);
      EXPECT_TRUE(call.outputs_untouched());
      EXPECT_EQ(call.damage(), "");
    }
  }
}

TEST_P(CApi, ArraysWithoutDataAndAxesAreLeftOut) {
  const contract::CaseArguments made = full_arguments(contract());
  for (const Argument& argument : op().schema->arguments) {
    if (!argument.is_array()) continue;
    SCOPED_TRACE(argument.name);
    GuardedCall cpp(made), plain_c(made);
    OpSizes sizes;
    ASSERT_TRUE(op().sizes(made.args.get(), Context{}, &sizes).ok());
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
    Context context;
    context.workspace = workspace.span();
    NamedCall call(op(), plain_c.args(), context);
    view_in(cpp.args(), argument) = {};
    const Status expected = op().call(cpp.args(), context);
    // Other arguments may ask for an optional one.
    EXPECT_TRUE(argument.is_optional() || !expected.ok());
    call.at(argument.name).data = nullptr;
    call.at(argument.name).ndim = 0;
    EXPECT_EQ(text(call.run()), text(expected));
    Outputs outputs = plain_c.outputs();
    if (argument.is_output()) {
      EXPECT_EQ(outputs.bytes[argument.name], cpp.outputs().bytes[argument.name]);  // poison
    }
    EXPECT_EQ(difference(cpp.outputs(), outputs), "");
  }
}

TEST(CApiByName, RefusesNullPointers) {
  EXPECT_EQ(tessera_call(nullptr), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "call: args: expected a pointer, got NULL");
  EXPECT_EQ(tessera_query(nullptr), TESSERA_INVALID_VALUE);
  EXPECT_STREQ(tessera_last_error(), "query: args: expected a pointer, got NULL");
}

/// An array that an op reads flattened, with axes whose product is no number of elements.
TEST(CApiByName, RefusesShapesThatNoArrayHas) {
  tessera_argument arguments[3] = {};
  arguments[0].name = "topk_ids";
  arguments[0].dtype = TESSERA_INT32;
  arguments[1].name = "block_size";
  arguments[2].name = "num_experts";
  arguments[1].value = arguments[2].value = 4;
  tessera_call_args args{};
  args.struct_size = sizeof(args);
  args.op = "align_block_size";
  args.arguments = arguments;
  args.num_arguments = 3;
  constexpr std::int64_t k2To32 = std::int64_t{1} << 32;
  const auto elements_of = [&](std::initializer_list<std::int64_t> shape) {
    arguments[0].ndim = static_cast<int>(shape.size());
    std::ranges::copy(shape, arguments[0].shape);
    const tessera_status status = tessera_query(&args);
    const std::string message = tessera_last_error();
    return status == TESSERA_OK ? "accepted" : message.substr(message.find(" got ") + 5);
  };
  EXPECT_EQ(elements_of({2, 3, 4}), "accepted");
  EXPECT_EQ(elements_of({k2To32, 0}), "accepted");
  EXPECT_EQ(elements_of({-2, -3}), "-3");
  EXPECT_EQ(elements_of({-2, 0}), "-2");
  EXPECT_EQ(elements_of({k2To32, k2To32}), "9223372036854775807");
  EXPECT_EQ(elements_of({k2To32, k2To32, 1, 1}), "9223372036854775807");
  EXPECT_EQ(elements_of({k2To32, std::int64_t{1} << 30}), "4611686018427387904");
  EXPECT_EQ(elements_of({std::numeric_limits<std::int64_t>::min(), 2}), "-9223372036854775808");
}

}  // namespace
}  // namespace tessera::test
