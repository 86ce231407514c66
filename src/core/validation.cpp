#include "core/validation.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "core/errors.hpp"
#include "core/layout.hpp"

namespace tessera::core {
namespace {

using Bound = Length::Bound;
using Layout = Argument::Layout;

constexpr std::size_t kMaxArrays = 32;
constexpr std::uintptr_t kAddressSpaceEnd = std::numeric_limits<std::uintptr_t>::max();
/// The largest distance between two addresses of an array.
constexpr std::uintptr_t kMostBytes = std::numeric_limits<std::ptrdiff_t>::max();

/// Memory of one array.
struct Extent {
  const char* name;
  std::uintptr_t begin;
  std::uintptr_t end;
};

std::string bytes(std::size_t count) { return std::to_string(count) + " bytes"; }

/// A power of two for a view whose dtype has been checked, 0 for a view that is not given.
std::size_t element_bytes(const TensorView& view) { return view.dtype.bits / 8U; }

std::size_t bytes_past_alignment(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) & (element_bytes(view) - 1);
}

bool is_same(DLDataType a, DLDataType b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

/// Whether the view is as its constructor made it. With memory or a length, but no data type, it is
/// a mistake of the caller.
bool is_absent(const TensorView& view) {
  return !view.given() && view.data == nullptr && view.num_elements == 0;
}

/// "an integer type", "int32", "float16, bfloat16 or float32".
std::string names_of(DtypeSet set) {
  if (set == dtypes::kIntegers) return "an integer type";
  std::vector<std::string_view> names;
  for (int i = 0; i < dtypes::kNumDtypes; ++i) {
    if ((set >> i & 1) != 0) names.emplace_back(dtypes::kAll[i].name);
  }
  return alternatives(names);
}

/// "an array of integers", "an int32 array", "an array of float16, bfloat16 or float32".
std::string array_of(DtypeSet set) {
  if (set == dtypes::kIntegers) return "an array of integers";
  const std::string names = names_of(set);
  if ((set & (set - 1)) != 0) return "an array of " + names;
  return (names[0] == 'i' ? "an " : "a ") + names + " array";
}

/// "[2, 3]"
std::string text_of(const std::int64_t* numbers, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  return text + "]";
}

std::string length_name(const Argument& argument, int axis) {
  return std::string(argument.name) +
         (argument.extents.ndim == 0 ? ".num_elements" : ".shape[" + std::to_string(axis) + "]");
}

int num_lengths(const Argument& argument) {
  return argument.extents.ndim == 0 ? 1 : argument.extents.ndim;
}

std::int64_t length_of(const Argument& argument, const TensorView& view, int axis) {
  return argument.extents.ndim == 0 ? view.num_elements : view.shape[axis];
}

}  // namespace

bool Validator::giving_arrays() {
  for (const Argument& argument : schema_.inputs) {
    const TensorView& view = view_of(argument);
    if (!argument.gives_symbols || (argument.is_optional() && is_absent(view))) continue;
    if (!good_dtype(argument, view) || !good_axes(argument, view) || !good_memory(argument, view)) {
      return false;
    }
  }
  return true;
}

bool Validator::numbers(std::int64_t* symbols) {
  for (const Argument& argument : schema_.numbers) {
    if (argument.kind == Argument::Kind::kFlag || argument.kind == Argument::Kind::kFloat32) {
      continue;
    }
    const std::int64_t value = number_in(args_, argument);
    if (!argument.choices.empty() && (value < argument.low || value > argument.high)) {
      return fail_choice(argument, value);
    }
    if (!in_range(argument.name, value, argument.low, argument.high)) return false;
    if (argument.symbol >= 0) symbols[argument.symbol] = value;
  }
  for (const Argument& argument : schema_.inputs) {
    const TensorView& view = view_of(argument);
    if (!argument.gives_symbols || (argument.is_optional() && is_absent(view))) continue;
    if (!good_axes(argument, view)) return false;
    for (int i = 0; i < num_lengths(argument); ++i) {
      const Length& length = argument.extents.lengths[i];
      if (length.bound != Bound::kGives) continue;
      const std::int64_t value = length_of(argument, view, i);
      if (value < 0 || value > length.constant) {
        return fail_given_length(argument, i, value);
      }
      symbols[length.symbol] = value;
    }
  }
  return true;
}

bool Validator::giving_lengths(const std::int64_t* symbols) {
  for (const Argument& argument : schema_.inputs) {
    const TensorView& view = view_of(argument);
    if (!argument.gives_symbols || (argument.is_optional() && is_absent(view))) continue;
    if (!good_lengths(argument, view, symbols)) return false;
  }
  return true;
}

bool Validator::arrays(const std::int64_t* symbols) {
  for (const Argument& argument : schema_.arguments) {
    if (!argument.is_array()) continue;
    const TensorView& view = view_of(argument);
    if (argument.is_optional() && is_absent(view)) continue;
    if (argument.gives_symbols) {  // the rest is checked
      if (!good_lengths(argument, view, symbols)) return false;
    } else if (!good_dtype(argument, view) || !good_axes(argument, view) ||
               !good_lengths(argument, view, symbols) || !good_memory(argument, view)) {
      return false;
    }
  }
  return true;
}

bool Validator::workspace(std::span<std::byte> workspace, std::size_t min_bytes) {
  if (workspace.size() < min_bytes) {
    return fail(StatusCode::kInvalidValue, "workspace", "at least " + bytes(min_bytes),
                std::to_string(workspace.size()));
  }
  return workspace.empty() || workspace.data() != nullptr ||
         fail(StatusCode::kInvalidValue, "workspace", "memory", "a null pointer");
}

bool Validator::no_overlap(std::span<std::byte> workspace) {
  std::array<Extent, kMaxArrays> extents;
  std::size_t n = 0;
  const auto add_arrays = [&](std::span<const Argument> arguments) {
    for (const Argument& argument : arguments) {
      if (!argument.is_array()) continue;
      const TensorView& view = view_of(argument);
      if (!view.given() || is_empty(argument, view)) continue;
      const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
      const std::size_t width = element_bytes(view);
      std::uint64_t spanned = 0;
      const std::uintptr_t most = std::min(kAddressSpaceEnd - begin, kMostBytes);
      if (!elements_spanned(argument, view, &spanned) ||
          spanned > most >> std::countr_zero(width)) {
        return fail_end(argument, view);
      }
      extents[n++] = {argument.name, begin, begin + spanned * width};
    }
    return true;
  };
  if (!add_arrays(schema_.outputs) || !add_arrays(schema_.rest)) return false;
  const std::size_t num_outputs = n;
  if (!add_arrays(schema_.inputs)) return false;
  const std::size_t num_arrays = n;
  const auto workspace_begin = reinterpret_cast<std::uintptr_t>(workspace.data());
  const std::size_t workspace_bytes = workspace.size();
  if (workspace_bytes > kAddressSpaceEnd - workspace_begin) {
    return fail(StatusCode::kInvalidValue, "workspace", "an end within the address space",
                bytes(workspace_bytes));
  }
  extents[n] = {"workspace", workspace_begin, workspace_begin + workspace_bytes};
  n += workspace_bytes != 0 ? 1 : 0;

  const auto overlap = [&](std::size_t i, std::size_t j) {
    return extents[i].begin < extents[j].end && extents[j].begin < extents[i].end;
  };
  for (std::size_t i = 0; i < num_outputs; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) {
      if (overlap(i, j)) return fail_overlap(extents[i].name, extents[j].name);
    }
  }
  for (std::size_t i = num_outputs; n > num_arrays && i < num_arrays; ++i) {
    if (overlap(i, num_arrays)) return fail_overlap("workspace", extents[i].name);
  }
  return true;
}

bool Validator::good_dtype(const Argument& argument, const TensorView& view) {
  if (argument.same_dtype_as < 0 || !view.given()) {
    return is_same(view.dtype, argument.first_dtype) ||
           (dtypes::set_of(view.dtype) & argument.dtypes) != 0 || fail_dtype(argument, view);
  }
  const DtypeSet allowed = allowed_dtypes(schema_, argument, args_);
  if ((dtypes::set_of(view.dtype) & allowed) != 0) return true;
  const Argument& other = schema_.arguments[argument.same_dtype_as];
  const bool is_shared = (dtypes::set_of(view_of(other).dtype) & allowed) != 0;
  return is_shared ? fail_same_dtype(argument, view, other) : fail_dtype(argument, view);
}

bool Validator::good_axes(const Argument& argument, const TensorView& view) {
  const int ndim = argument.extents.ndim;
  return (ndim == 0 ? view.ndim >= 0 : view.ndim == ndim) || fail_axes(argument, view);
}

bool Validator::good_lengths(const Argument& argument, const TensorView& view,
                             const std::int64_t* symbols) {
  for (int i = 0; i < num_lengths(argument); ++i) {
    const Length& length = argument.extents.lengths[i];
    if (length.bound == Bound::kGives) continue;
    const std::int64_t expected = length.symbol < 0 ? length.constant : symbols[length.symbol];
    const std::int64_t found = length_of(argument, view, i);
    const bool at_least = length.bound == Bound::kAtLeast;
    if (at_least ? found < expected : found != expected) {
      return fail_length(argument, i, expected, found);
    }
  }
  return true;
}

bool Validator::good_memory(const Argument& argument, const TensorView& view) {
  const bool is_good =
      view.device.device_type == context_.device.device_type &&
      view.device.device_id == context_.device.device_id && has_layout(argument, view) &&
      (view.data != nullptr || is_empty(argument, view)) && bytes_past_alignment(view) == 0;
  return is_good || fail_memory(argument, view);
}

bool Validator::fail(StatusCode code, std::string_view argument, std::string_view expected,
                     std::string_view got) {
  status = refuse(code, schema_.op, argument, expected, got);
  return false;
}

bool Validator::fail_range(std::string_view name, std::int64_t value, std::int64_t low,
                           std::int64_t high) {
  return fail(StatusCode::kInvalidValue, name,
              "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]",
              std::to_string(value));
}

bool Validator::fail_choice(const Argument& argument, std::int64_t value) {
  const std::vector<std::string_view> names(argument.choices.begin(), argument.choices.end());
  return fail(StatusCode::kInvalidValue, argument.name, alternatives(names), std::to_string(value));
}

bool Validator::fail_given_length(const Argument& argument, int axis, std::int64_t found) {
  return fail_range(length_name(argument, axis), found, 0, argument.extents.lengths[axis].constant);
}

bool Validator::fail_dtype(const Argument& argument, const TensorView& view) {
  if (!view.given()) {
    return fail(StatusCode::kInvalidValue, argument.name, array_of(argument.dtypes),
                is_absent(view) ? "none" : "one without a data type");
  }
  return fail(StatusCode::kInvalidType, std::string(argument.name) + ".dtype",
              names_of(argument.dtypes), to_string(view.dtype));
}

bool Validator::fail_same_dtype(const Argument& argument, const TensorView& view,
                                const Argument& other) {
  const DLDataType shared = view_of(other).dtype;
  const DtypeSet others = argument.other_dtypes & ~dtypes::set_of(shared);
  return fail(StatusCode::kInvalidType, std::string(argument.name) + ".dtype",
              to_string(shared) + ", as " + other.name + " has" +
                  (others == 0 ? "" : ", or " + names_of(others)),
              to_string(view.dtype));
}

bool Validator::fail_axes(const Argument& argument, const TensorView& view) {
  const int ndim = argument.extents.ndim;
  return fail(StatusCode::kInvalidValue, std::string(argument.name) + ".ndim",
              ndim == 0 ? "at least 0" : std::to_string(ndim), std::to_string(view.ndim));
}

bool Validator::fail_length(const Argument& argument, int axis, std::int64_t expected,
                            std::int64_t found) {
  const bool at_least = argument.extents.lengths[axis].bound == Bound::kAtLeast;
  return fail(StatusCode::kInvalidValue, length_name(argument, axis),
              (at_least ? "at least " : "") + std::to_string(expected), std::to_string(found));
}

bool Validator::fail_memory(const Argument& argument, const TensorView& view) {
  const std::string name = argument.name;
  if (view.device.device_type != context_.device.device_type ||
      view.device.device_id != context_.device.device_id) {
    return fail(StatusCode::kInvalidValue, name + ".device", to_string(context_.device),
                to_string(view.device));
  }
  if (!has_layout(argument, view)) {
    // A flattened array has no axes here.
    const std::string got = argument.extents.ndim == 0
                                ? "a strided one"
                                : "strides " + text_of(view.strides, view.ndim) + " of shape " +
                                      text_of(view.shape, view.ndim);
    switch (argument.layout) {
      case Layout::kContiguous:
        return fail(StatusCode::kInvalidValue, name, "a contiguous array", got);
      case Layout::kRowsApart:
        return fail(StatusCode::kInvalidValue, name, "contiguous rows that share no memory", got);
      case Layout::kRowsApartOrTransposed:
        return fail(StatusCode::kInvalidValue, name,
                    "contiguous rows that share no memory, or such columns", got);
    }
  }
  const std::string data = name + ".data";
  if (view.data == nullptr) {
    return fail(StatusCode::kInvalidValue, data, "memory for its elements", "a null pointer");
  }
  return fail(StatusCode::kInvalidValue, data, "memory aligned to " + bytes(element_bytes(view)),
              "an address " + std::to_string(bytes_past_alignment(view)) + " past such a boundary");
}

bool Validator::fail_end(const Argument& argument, const TensorView& view) {
  if (argument.extents.ndim != 0) {
    return fail(StatusCode::kInvalidValue, std::string(argument.name) + ".shape",
                "an end within the address space", "more elements");
  }
  return fail(StatusCode::kInvalidValue, std::string(argument.name) + ".num_elements",
              "an end within the address space", std::to_string(view.num_elements));
}

bool Validator::fail_overlap(const char* written, const char* other) {
  return fail(StatusCode::kInvalidValue, written, "memory of its own",
              std::string("memory shared with ") + other);
}

}  // namespace tessera::core
