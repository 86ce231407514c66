#include "op_arguments.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace tessera::test {
namespace {

/// Calls `visit` with the index in memory of each element, in row-major order.
template <typename Visit>
void for_each_index(const TensorView& view, const Visit& visit) {
  for (std::int64_t i = 0; i < view.num_elements; ++i) {
    std::int64_t index = 0;
    std::int64_t left = i;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
      index += left % view.shape[axis] * view.strides[axis];
      left /= view.shape[axis];
    }
    visit(static_cast<std::size_t>(index));
  }
}

}  // namespace

const Argument& argument_named(const Schema& schema, std::string_view name) {
  for (const Argument& argument : schema.arguments) {
    if (argument.name == name) return argument;
  }
  std::fprintf(stderr, "%s has no argument %s\n", std::string(schema.op).c_str(),
               std::string(name).c_str());
  std::abort();
}

std::vector<std::byte> elements_in(std::span<const std::byte> memory, const TensorView& view) {
  if (view.contiguous) return {memory.begin(), memory.end()};
  const std::size_t width = element_bytes(view);
  std::vector<std::byte> elements;
  for_each_index(view, [&](std::size_t index) {
    const auto element = memory.subspan(index * width, width);
    elements.insert(elements.end(), element.begin(), element.end());
  });
  return elements;
}

bool has_gaps_of(std::byte value, std::span<const std::byte> memory, const TensorView& view) {
  if (view.contiguous) return true;
  const std::size_t width = element_bytes(view);
  std::vector<std::byte> gaps(memory.begin(), memory.end());
  for_each_index(view, [&](std::size_t index) {
    std::fill_n(gaps.begin() + static_cast<std::ptrdiff_t>(index * width), width, value);
  });
  return std::ranges::all_of(gaps, [&](std::byte b) { return b == value; });
}

TensorView written_part(const contract::OpContract& contract, const Argument& argument,
                        const void* args) {
  TensorView view = view_in(args, argument);
  if (contract.partly_written.array != argument.name) return view;
  const std::int64_t num_rows = contract.partly_written.num_rows(args);
  if (num_rows == view.shape[0]) return view;
  view.num_elements = view.num_elements / view.shape[0] * num_rows;
  view.shape[0] = num_rows;
  view.contiguous = false;  // the other rows count as a gap
  return view;
}

std::int64_t num_elements_of(const contract::CaseArguments& made) {
  std::int64_t total = 0;
  for (const Argument& argument : find_op(made.op)->schema->arguments) {
    if (argument.is_array()) total += view_in(made.args.get(), argument).num_elements;
  }
  return total;
}

contract::CaseArguments full_arguments(const contract::OpContract& contract) {
  constexpr std::int64_t kSize = 200;
  constexpr std::int64_t kMaxElements = 4000;
  for (std::uint64_t seed = 0; seed < 100000; ++seed) {
    contract::CaseArguments made =
        contract.arguments(contract::random_case_name(seed, kSize), seed);
    if (num_elements_of(made) > kMaxElements) continue;
    bool is_full = true;
    for (const Argument& argument : find_op(contract.op)->schema->arguments) {
      if (!argument.is_array()) continue;
      const TensorView& view = view_in(made.args.get(), argument);
      is_full &= view.num_elements > 0 && (!argument.is_output() || view.contiguous);
    }
    if (is_full) return made;
  }
  std::fprintf(stderr, "no random case gives all arguments of %s\n", contract.op.data());
  std::abort();
}

bool has_right_lengths(const Schema& schema, const void* args, const std::int64_t* symbols) {
  for (const Argument& argument : schema.arguments) {
    if (!argument.is_array()) continue;
    TensorView view = view_in(args, argument);
    if (!view.given()) continue;
    for (int axis = 0; axis < num_lengths(argument); ++axis) {
      const Length& length = argument.extents.lengths[axis];
      const std::int64_t wanted = length.symbol < 0 ? length.constant : symbols[length.symbol];
      const std::int64_t found = length_in(view, argument, axis);
      if (length.bound == Length::Bound::kExactly && found != wanted) return false;
      if (length.bound == Length::Bound::kAtLeast && found < wanted) return false;
      if (found < 0) return false;
    }
  }
  return true;
}

std::vector<std::string> implementations_of(const contract::CaseArguments& made, DLDevice device) {
  const OpEntry& op = *find_op(made.op);
  Context context;
  context.device = device;
  std::vector<ImplementationReport> reports;
  if (!op.explain(made.args.get(), context, &reports).ok()) return {};
  std::vector<std::string> names;
  for (const ImplementationReport& report : reports) {
    context.implementation = report.name;
    OpSizes sizes;
    if (!op.sizes(made.args.get(), context, &sizes).ok()) continue;
    names.insert(report.selected ? names.begin() : names.end(), report.name);
  }
  return names;
}

}  // namespace tessera::test
