#include "guarded_call.hpp"

#include <algorithm>
#include <utility>

namespace tessera::test {
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
    : op_(*find_op(made.op)),
      contract_(*contract::find_contract(made.op)),
      made_(std::move(made)),
      workspace_misalignment_(seed % 64) {
  const auto* const given = static_cast<const std::byte*>(made_.args.get());
  args_.assign(given, given + op_.args_bytes);
  std::uint64_t place = seed / 2;
  for (const Argument& argument : op_.schema->arguments) {
    if (!argument.is_array()) continue;
    TensorView& view = view_in(args(), argument);
    if (!view.given()) continue;
    const std::size_t misalignment = place % 8 * element_bytes(view);
    place += 3;
    Array array{&argument, view, {}, nullptr};
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
    const std::span<const std::byte> memory = array.buffer->span();
    const bool is_kept = array.argument->is_output() ? has_gaps_of(array.buffer->poisoned_with(),
                                                                   memory, written_part(array))
                                                     : std::ranges::equal(memory, array.contents);
    if (!is_kept || !array.buffer->intact()) return array.argument->name;
  }
  return {};
}

TensorView GuardedCall::written_part(const Array& array) const {
  // A test may have changed the argument struct since.
  const auto* const given = static_cast<const std::byte*>(made_.args.get());
  std::vector<std::byte> args(given, given + op_.args_bytes);
  for (const Array& other : arrays_) {
    view_in(args.data(), *other.argument).data = other.buffer->data();
  }
  return test::written_part(contract_, *array.argument, args.data());
}

Outputs GuardedCall::outputs() const {
  Outputs outputs;
  for (const Array& array : arrays_) {
    if (!array.argument->is_output()) continue;
    outputs.bytes[array.argument->name] = elements_in(array.buffer->span(), written_part(array));
  }
  return outputs;
}

}  // namespace tessera::test
