// The checks that every op makes of its arguments, and the messages of those that fail.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "tessera/context.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::core {

inline constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

/// An argument that is an array, by its name in messages.
struct NamedView {
  const char* name;
  const TensorView& view;
};

/// The checks of one call. Each returns true, or leaves its message in `status`: a call passes some
/// twenty of them, too many to hand a Status through every one.
class Validator {
 public:
  Validator(std::string_view op, const Context& context) : op_(op), context_(context) {}

  bool in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    return (value >= low && value <= high) || fail_range(name, value, low, high);
  }

  bool integer_array(const char* name, const TensorView& view) {
    return (is_integer(view.dtype) || fail_integer(name, view)) && good_memory(name, view);
  }

  bool int32_array(const char* name, const TensorView& view, std::int64_t length) {
    return good_dtype(name, view, kInt32) && exact_length(name, view, length) &&
           good_memory(name, view);
  }

  bool int32_buffer(const char* name, const TensorView& view, std::int64_t min_length) {
    return good_dtype(name, view, kInt32) &&
           (view.num_elements >= min_length || fail_length(name, view, "at least ", min_length)) &&
           good_memory(name, view);
  }

  /// An array that need not be given.
  bool optional_array(const char* name, const TensorView& view, DLDataType dtype,
                      std::int64_t length) {
    return !view.given() || (good_dtype(name, view, dtype) && exact_length(name, view, length) &&
                             good_memory(name, view));
  }

  bool workspace(std::size_t min_bytes) {
    return context_.workspace.size() >= min_bytes || fail_workspace(min_bytes);
  }

  /// What is written, outputs and workspace, may not share memory with anything else of the call;
  /// and everything must end within the address space. Call it once the arrays are checked.
  template <std::size_t kOutputs, std::size_t kInputs>
  bool no_overlap(const NamedView (&outputs)[kOutputs], const NamedView (&inputs)[kInputs]) {
    std::array<Extent, kOutputs + kInputs + 1> extents;
    std::size_t n = 0;
    const auto add_view = [&](const NamedView& array) {
      const auto begin = reinterpret_cast<std::uintptr_t>(array.view.data);
      const auto length = static_cast<std::uintptr_t>(array.view.num_elements);
      const std::size_t width = element_bytes(array.view);
      if (width == 0 || length == 0) return true;
      if (length > (kAddressSpaceEnd - begin) / width) return fail_end(array.name, array.view);
      extents[n++] = {array.name, begin, begin + length * width};
      return true;
    };
    for (const NamedView& array : outputs) {
      if (!add_view(array)) return false;
    }
    const std::size_t num_outputs = n;
    for (const NamedView& array : inputs) {
      if (!add_view(array)) return false;
    }
    const std::size_t num_arrays = n;
    const auto workspace_begin = reinterpret_cast<std::uintptr_t>(context_.workspace.data());
    const std::size_t workspace_bytes = context_.workspace.size();
    if (workspace_bytes > kAddressSpaceEnd - workspace_begin) return fail_workspace_end();
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

  /// For what only one op checks: leaves "op: argument: expected ..., got ...", returns false.
  bool fail(StatusCode code, std::string_view argument, std::string_view expected,
            std::string_view got);

  Status status;

  static constexpr DLDataType kInt32{kDLInt, 32, 1};

 private:
  struct Extent {
    const char* name;
    std::uintptr_t begin;
    std::uintptr_t end;
  };

  static constexpr std::uintptr_t kAddressSpaceEnd = std::numeric_limits<std::uintptr_t>::max();

  static bool is_integer(DLDataType dtype) {
    return (dtype.code == kDLInt || dtype.code == kDLUInt) && dtype.lanes == 1 &&
           (dtype.bits == 8 || dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64);
  }

  static bool same(DLDataType a, DLDataType b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
  }

  /// Of a view whose dtype has been checked: a power of two. 0 for one that is not given.
  static std::size_t element_bytes(const TensorView& view) { return view.dtype.bits / 8U; }

  static std::size_t bytes_past_alignment(const TensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.data) & (element_bytes(view) - 1);
  }

  bool good_dtype(const char* name, const TensorView& view, DLDataType dtype) {
    return same(view.dtype, dtype) || fail_dtype(name, view, dtype);
  }

  bool exact_length(const char* name, const TensorView& view, std::int64_t length) {
    return view.num_elements == length || fail_length(name, view, "", length);
  }

  /// What holds for every array: device, contiguity, memory, alignment to its element size.
  bool good_memory(const char* name, const TensorView& view) {
    const bool is_good = view.device.device_type == context_.device.device_type &&
                         view.device.device_id == context_.device.device_id && view.contiguous &&
                         (view.data != nullptr || view.num_elements == 0) &&
                         bytes_past_alignment(view) == 0;
    return is_good || fail_memory(name, view);
  }

  // What builds messages stays out of line, so that the checks themselves are inlined.
  bool fail_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high);
  bool fail_integer(const char* name, const TensorView& view);
  bool fail_dtype(const char* name, const TensorView& view, DLDataType dtype);
  bool fail_length(const char* name, const TensorView& view, const char* bound,
                   std::int64_t length);
  bool fail_memory(const char* name, const TensorView& view);
  bool fail_workspace(std::size_t min_bytes);
  bool fail_end(const char* name, const TensorView& view);
  bool fail_workspace_end();
  bool fail_overlap(const char* written, const char* other);

  std::string_view op_;
  const Context& context_;
};

}  // namespace tessera::core
