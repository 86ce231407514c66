// Every field that tessera_query and tessera_call read at its extremes, alone and in pairs: a
// status comes back, and a refused call writes nothing.
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "guarded_call.hpp"
#include "named_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

constexpr std::array<std::int64_t, 6> kExtremes{
    std::numeric_limits<std::int64_t>::min(), -1, 0, 1, kInt32Max + 1,
    std::numeric_limits<std::int64_t>::max()};

/// One field set to one value.
struct Change {
  std::string what;
  std::function<void(NamedCall& call)> apply;
};

class Changes {
 public:
  /// `call` has every argument of the op.
  explicit Changes(const Schema& schema, const NamedCall& call) {
    add_call();
    for (std::size_t i = 0; i < call.arguments.size(); ++i) {
      const std::string name = call.arguments[i].name;
      add(name + " without its name", [i](NamedCall& c) { c.arguments[i].name = nullptr; });
      add(name + " with another name",
          [i](NamedCall& c) { c.arguments[i].name = c.arguments[0].name; });
      add_number(name + ".value", [i](NamedCall& c) { return &c.arguments[i].value; });
      add_number(name + ".ndim", [i](NamedCall& c) { return &c.arguments[i].ndim; });
      const Argument& argument = argument_named(schema, name);
      if (!argument.is_array()) continue;
      add(name + ".data = NULL", [i](NamedCall& c) { c.arguments[i].data = nullptr; });
      add_number(name + ".dtype", [i](NamedCall& c) { return &c.arguments[i].dtype; });
      // One axis more than the table names.
      for (int axis = 0; axis <= num_lengths(argument); ++axis) {
        const std::string number = std::to_string(axis);
        add_number(name + ".shape of axis " + number,
                   [i, axis](NamedCall& c) { return &c.arguments[i].shape[axis]; });
        add_number(name + ".strides of axis " + number,
                   [i, axis](NamedCall& c) { return &c.arguments[i].strides[axis]; });
      }
    }
  }

  const std::vector<Change>& all() const { return changes_; }

 private:
  void add(const std::string& what, const std::function<void(NamedCall&)>& apply) {
    changes_.push_back({what, apply});
  }

  template <typename Field>
  void add_number(const std::string& what, Field field) {
    using Value = std::remove_pointer_t<std::invoke_result_t<Field, NamedCall&>>;
    for (const std::int64_t value : kExtremes) {
      if (!std::in_range<Value>(value)) continue;
      add(what + " = " + std::to_string(value),
          [field, value](NamedCall& call) { *field(call) = static_cast<Value>(value); });
    }
  }

  void add_call() {
    add("no op", [](NamedCall& call) { call.args.op = nullptr; });
    add("no arguments", [](NamedCall& call) { call.args.arguments = nullptr; });
    add("no workspace", [](NamedCall& call) { call.args.workspace = nullptr; });
    add("another implementation", [](NamedCall& call) { call.args.implementation = "cuda/grid"; });
    add_number("struct_size", [](NamedCall& call) { return &call.args.struct_size; });
    add_number("workspace_bytes", [](NamedCall& call) { return &call.args.workspace_bytes; });
    add_number("device_type", [](NamedCall& call) { return &call.args.device_type; });
    add_number("device_id", [](NamedCall& call) { return &call.args.device_id; });
    add_number("num_threads", [](NamedCall& call) { return &call.args.num_threads; });
    add("num_arguments = 0", [](NamedCall& call) { call.args.num_arguments = 0; });
    add("num_arguments = 1", [](NamedCall& call) { call.args.num_arguments = 1; });
  }

  std::vector<Change> changes_;
};

class CApiExtremes : public OpTest {
 protected:
  CApiExtremes() : call_(full_arguments(contract())) {
    OpSizes sizes;
    EXPECT_TRUE(op().sizes(call_.args(), context_, &sizes).ok());
    workspace_ = std::make_unique<GuardedBuffer<std::byte>>(
        static_cast<std::int64_t>(sizes.workspace_bytes));
    context_.workspace = workspace_->span();
  }

  /// Whether no array claims more memory than it has; no call could notice.
  bool is_true_of(const NamedCall& call) {
    __extension__ using Wide = __int128;
    for (const tessera_argument& argument : call.arguments) {
      if (argument.name == nullptr || argument.data == nullptr || argument.ndim < 0 ||
          argument.ndim > TESSERA_MAX_AXES || argument.dtype < 0 ||
          argument.dtype >= dtypes::kNumDtypes) {
        continue;  // refused, or not read
      }
      Wide product = 1;
      Wide last = 0;
      for (int axis = 0; axis < argument.ndim; ++axis) {
        const Wide length = argument.shape[axis];
        if (length > (1 << 20) || argument.strides[axis] > (1 << 20)) return false;
        if (length < 0) break;  // refused
        product *= length;
        if (length > 1) last += (length - 1) * argument.strides[axis];
      }
      const Wide bytes =
          std::max(product, last + 1) * (dtypes::kAll[argument.dtype].dtype.bits / 8);
      if (bytes > static_cast<Wide>(call_.memory(argument.name).size())) return false;
    }
    return call.args.workspace == nullptr || call.args.workspace_bytes <= workspace_->span().size();
  }

  /// Returns what is wrong with how the op takes the call; nothing if all is well.
  std::string fault_of(const NamedCall& changed) {
    NamedCall asked(op(), call_.args(), context_);
    asked.arguments = changed.arguments;
    asked.args = changed.args;
    if (changed.args.arguments != nullptr) asked.args.arguments = asked.arguments.data();
    const Status query = asked.query();
    if (!is_sound(query)) return "the query returns " + query.message();
    if (query.ok() && !is_true_of(changed)) return {};
    call_.poison_outputs(kPoison);
    const Status run = changed.run();
    if (!is_sound(run)) return "the call returns " + run.message();
    if (run.ok() && !query.ok()) return "the call accepts what the query refuses";
    if (!run.ok() && !call_.outputs_untouched()) return "a refused call writes";
    if (const std::string damage = call_.damage(); !damage.empty()) return "damages " + damage;
    ++(run.ok() ? num_accepted_ : num_refused_);
    return workspace_->intact() ? "" : "writes beside the workspace";
  }

  bool is_sound(const Status& status) {
    return status.ok() ||
           (status.code() >= StatusCode::kInvalidType &&
            status.code() <= StatusCode::kRuntimeError &&
            (status.message().starts_with(name() + ": ") ||
             status.message().starts_with("call: ") || status.message().starts_with("query: ")));
  }

  GuardedCall call_;
  Context context_;
  std::unique_ptr<GuardedBuffer<std::byte>> workspace_;
  int num_accepted_ = 0;
  int num_refused_ = 0;
};

TESSERA_FOR_ALL_OPS(CApiExtremes);

TEST_P(CApiExtremes, AloneAndInPairs) {
  const NamedCall good(op(), call_.args(), context_);
  ASSERT_EQ(fault_of(good), "");
  ASSERT_EQ(num_accepted_, 1);
  const Changes changes(*op().schema, good);
  NamedCall changed(op(), call_.args(), context_);
  const tessera_call_args args = changed.args;
  for (const Change& first : changes.all()) {
    for (const Change& second : changes.all()) {
      changed.arguments = good.arguments;
      changed.args = args;
      first.apply(changed);
      second.apply(changed);
      EXPECT_EQ(fault_of(changed), "") << first.what << ", " << second.what;
    }
  }
  // Neither all refused nor all accepted, which would show nothing.
  EXPECT_GT(num_accepted_, 200);
  EXPECT_GT(num_refused_, 1000);
}

}  // namespace
}  // namespace tessera::test
