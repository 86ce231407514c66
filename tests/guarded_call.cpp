#include "guarded_call.hpp"

#include <algorithm>
#include <utility>

namespace tessera::test {
namespace {

/// Calls `body` with the first element of every row, counted from the first of the array; once for
/// a contiguous array.
template <typename Body>
void for_each_row(const TensorView& view, const Body& body) {
  if (view.contiguous) return body(0);
  std::int64_t num_rows = 1;
  for (int i = 0; i + 1 < view.ndim; ++i) num_rows *= view.shape[i];
  for (std::int64_t row = 0; row < num_rows; ++row) {
    std::int64_t first = 0;
    std::int64_t left = row;
    for (int i = view.ndim - 2; i >= 0; --i) {
      first += left % view.shape[i] * view.strides[i];
      left /= view.shape[i];
    }
    body(first);
  }
}

}  // namespace

std::string difference(const Outputs& expected, const Outputs& found) {
  for (const auto& [argument, bytes] : expected.bytes) {
    const auto other = found.bytes.find(argument);
    if (other == found.bytes.end()) return argument + " is not there";
    if (bytes == other->second) continue;
    const auto differs =
        std::mismatch(bytes.begin(), bytes.end(), other->second.begin(), other->second.end());
    return argument + " differs from byte " + std::to_string(differs.first - bytes.begin()) + " on";
  }
  return {};
}

GuardedCall::GuardedCall(contract::CaseArguments made, std::uint64_t seed, std::size_t guard_bytes)
    : op_(*find_op(made.op)), made_(std::move(made)), workspace_misalignment_(seed % 64) {
  const auto* const given = static_cast<const std::byte*>(made_.args.get());
  args_.assign(given, given + op_.args_bytes);
  std::uint64_t place = seed / 2;
  for (const Argument& argument : op_.schema->arguments) {
    if (!argument.is_array()) continue;
    TensorView& view = view_in(args(), argument);
    if (!view.given()) continue;
    const std::size_t misalignment = place % 8 * element_bytes(view);
    place += 3;
    Array array{&argument, {}, nullptr};
    array.buffer = std::make_unique<GuardedBuffer<std::byte>>(
        static_cast<std::int64_t>(bytes_of(view)), misalignment, guard_bytes);
    if (!argument.is_output()) {
      array.contents = {static_cast<const std::byte*>(view.data), bytes_of(view)};
      std::ranges::copy(array.contents, array.buffer->data());
    }
    view.data = array.buffer->data();
    arrays_.push_back(std::move(array));
  }
}

std::span<std::byte> GuardedCall::memory(std::string_view argument) {
  for (const Array& array : arrays_) {
    if (array.argument->name == argument) return array.buffer->span();
  }
  return {};
}

Status GuardedCall::run(Context context) {
  OpSizes sizes;
  if (Status s = op_.sizes(args(), context, &sizes); !s.ok()) return s;
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes),
                                     workspace_misalignment_);
  context.workspace = workspace.span();
  const Status status = op_.call(args(), context);
  workspace_intact_ = workspace_intact_ && workspace.intact();
  return status;
}

void GuardedCall::poison_outputs(std::byte value) {
  for (const Array& array : arrays_) {
    if (array.argument->is_output()) array.buffer->poison(value);
  }
}

bool GuardedCall::outputs_untouched() const {
  return std::ranges::all_of(arrays_, [](const Array& array) {
    return !array.argument->is_output() || array.buffer->untouched();
  });
}

std::string GuardedCall::damage() const {
  if (!workspace_intact_) return "workspace";
  for (const Array& array : arrays_) {
    const bool has_changed =
        !array.argument->is_output() && !std::ranges::equal(array.buffer->span(), array.contents);
    if (has_changed || !array.buffer->intact()) return array.argument->name;
  }
  return {};
}

Outputs GuardedCall::outputs() const {
  Outputs outputs;
  for (const Array& array : arrays_) {
    if (!array.argument->is_output()) continue;
    const TensorView& view = view_in(args(), *array.argument);
    std::vector<std::byte>& bytes = outputs.bytes[array.argument->name];
    // Row by row: between rows the memory keeps what was there before the call.
    const std::size_t row_bytes = view.contiguous ? array.buffer->span().size()
                                                  : view.shape[view.ndim - 1] * element_bytes(view);
    for_each_row(view, [&](std::int64_t first) {
      const auto row = array.buffer->span().subspan(first * element_bytes(view), row_bytes);
      bytes.insert(bytes.end(), row.begin(), row.end());
    });
  }
  return outputs;
}

}  // namespace tessera::test
