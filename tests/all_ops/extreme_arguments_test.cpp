// Every argument of every op at its extremes, alone and in pairs: what breaks the table is refused
// and writes nothing, and what is accepted keeps the contract.
#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "guarded_call.hpp"
#include "ops_tested.hpp"

namespace tessera::test {
namespace {

constexpr std::array<std::int64_t, 8> kExtremes{std::numeric_limits<std::int64_t>::min(),
                                                std::numeric_limits<std::int64_t>::min() + 1,
                                                -1,
                                                0,
                                                1,
                                                kInt32Max,
                                                kInt32Max + 1,
                                                std::numeric_limits<std::int64_t>::max()};

/// One argument set to one value.
struct Change {
  std::string what;
  std::function<void(void* args)> apply;
};

std::vector<Change> changes_of(const Schema& schema) {
  std::vector<Change> changes;
  const auto change = [&](const Argument& argument, const std::string& to,
                          const std::function<void(TensorView&)>& apply) {
    changes.push_back({std::string(argument.name) + " " + to,
                       [&argument, apply](void* args) { apply(view_in(args, argument)); }});
  };
  for (const Argument& argument : schema.arguments) {
    if (!argument.is_array()) {
      for (const std::int64_t value : kExtremes) {
        if (argument.kind == Argument::Kind::kFlag && value != 0 && value != 1) continue;
        // Zeros, the smallest numbers and NaNs.
        if (argument.kind == Argument::Kind::kFloat32 && (value < -1 || value > kInt32Max))
          continue;
        changes.push_back({std::string(argument.name) + " = " + std::to_string(value),
                           [&argument, value](void* args) { set_number(args, argument, value); }});
      }
      continue;
    }
    change(argument, "not given", [](TensorView& view) { view = {}; });
    change(argument, "without memory", [](TensorView& view) { view.data = nullptr; });
    change(argument, "strided", [](TensorView& view) {
      view.contiguous = false;
      for (std::int64_t& stride : view.strides) stride = 3;
    });
    for (const DLDataType dtype : {DLDataType{kDLInt, 8, 1}, DLDataType{kDLBfloat, 16, 1}}) {
      change(argument, "of " + std::to_string(dtype.bits) + " bits",
             [dtype](TensorView& view) { view.dtype = dtype; });
    }
    for (int axis = 0; axis < num_lengths(argument); ++axis) {
      for (const std::int64_t length : kExtremes) {
        change(argument, "with length " + std::to_string(length),
               [&argument, axis, length](TensorView& view) {
                 length_in(view, argument, axis) = length;
               });
      }
    }
  }
  return changes;
}

class ExtremeArguments : public OpTest {
 protected:
  ExtremeArguments() : good_(full_arguments(contract())), call_(good_) {
    const auto* const begin = static_cast<const std::byte*>(call_.args());
    args_.assign(begin, begin + op().args_bytes);
  }

  void restore() { std::ranges::copy(args_, static_cast<std::byte*>(call_.args())); }

  /// Whether no array claims more memory than it has; no call could notice.
  bool is_true() {
    for (const Argument& argument : op().schema->arguments) {
      if (!argument.is_array()) continue;
      const TensorView& view = view_in(call_.args(), argument);
      if (!view.given() || view.data == nullptr) continue;
      const std::size_t room = call_.memory(argument.name).size();
      __extension__ using Wide = __int128;
      Wide elements = view.num_elements;
      if (argument.extents.ndim != 0) {
        elements = 1;
        Wide last = 0;  // with the strides, which may be larger than the array's
        for (int i = 0; i < argument.extents.ndim; ++i) {
          if (view.shape[i] > kInt32Max) return false;
          elements *= view.shape[i];
          last += static_cast<Wide>(view.shape[i] - 1) * view.strides[i];
        }
        if (elements > 0) elements = std::max(elements, last + 1);
      }
      if (elements * static_cast<Wide>(element_bytes(view)) > static_cast<Wide>(room)) return false;
    }
    return true;
  }

  /// Returns what is wrong with how the op takes the arguments; nothing if all is well.
  std::string fault() {
    OpSizes sizes;
    Context context;
    context.num_threads = 1;  // some ops take workspace for each thread
    const Status query = op().sizes(call_.args(), context, &sizes);
    const bool must_be_refused =
        !query.ok() || !has_right_lengths(*op().schema, call_.args(), sizes.symbols);
    if (!must_be_refused && !is_true()) return {};
    if (!query.ok() && !query.message().starts_with(name() + ": ")) return query.message();
    // No workspace suffices for an arbitrary number of experts.
    if (query.ok() && sizes.workspace_bytes > (1 << 20)) return {};
    call_.poison_outputs(kPoison);
    GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
    context.workspace = workspace.span();
    const Status status = op().call(call_.args(), context);
    if (!workspace.intact()) return "writes beside the workspace";
    if (const std::string damage = call_.damage(); !damage.empty()) return "damages " + damage;
    if (!status.ok()) {
      ++num_refused_;
      if (!status.message().starts_with(name() + ": ")) return status.message();
      return call_.outputs_untouched() ? "" : "a refused call writes";
    }
    ++num_accepted_;
    if (must_be_refused) return "accepted";
    const std::vector<contract::Violation> violations = contract().check(call_.args());
    return violations.empty() ? "" : violations.front().message;
  }

  contract::CaseArguments good_;
  GuardedCall call_;
  std::vector<std::byte> args_;
  int num_accepted_ = 0;
  int num_refused_ = 0;
};

TESSERA_FOR_ALL_OPS(ExtremeArguments);

TEST_P(ExtremeArguments, AloneAndInPairs) {
  ASSERT_EQ(fault(), "");
  ASSERT_EQ(num_accepted_, 1);
  const std::vector<Change> changes = changes_of(*op().schema);
  for (const Change& first : changes) {
    for (const Change& second : changes) {
      first.apply(call_.args());
      second.apply(call_.args());
      EXPECT_EQ(fault(), "") << first.what << ", " << second.what;
      restore();
    }
  }
  // Neither all refused nor all accepted, which would show nothing.
  EXPECT_GT(num_accepted_, 50);
  EXPECT_GT(num_refused_, 1000);
}

}  // namespace
}  // namespace tessera::test
