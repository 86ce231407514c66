// Validates a call's arguments against the op's table, and makes the messages of errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tessera/context.hpp"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::core {

/// Validates one call. Every member function returns true, or leaves a message in `status` and
/// returns false: some thirty of them run per call, and returning a Status from each would cost
/// more.
class Validator {
 public:
  Validator(const Schema& schema, const void* args, const Context& context)
      : schema_(schema), args_(args), context_(context) {}

  /// Validates data type, axes and memory of the arrays that give symbols their values.
  bool giving_arrays();

  /// Validates the ranges of all numbers, then of all lengths that give a symbol its value, and
  /// writes these values to `symbols`.
  bool numbers(std::int64_t* symbols);

  /// Validates the other lengths of arrays that give symbols, for a query, which reads no others.
  bool giving_lengths(const std::int64_t* symbols);

  /// Validates everything else that the table says of each array. All symbols must have values.
  bool arrays(const std::int64_t* symbols);

  bool workspace(std::span<std::byte> workspace, std::size_t min_bytes);

  /// Outputs and workspace may not share memory with any other array of the call, and all arrays
  /// must end within the address space. Call this after arrays().
  bool no_overlap(std::span<std::byte> workspace);

  bool in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    return (value >= low && value <= high) || fail_range(name, value, low, high);
  }

  /// For rules of a single op: leaves "op: argument: expected ..., got ..." and returns false.
  bool fail(StatusCode code, std::string_view argument, std::string_view expected,
            std::string_view got);

  Status status;

 private:
  const TensorView& view_of(const Argument& argument) const { return view_in(args_, argument); }

  bool good_dtype(const Argument& argument, const TensorView& view);
  bool good_axes(const Argument& argument, const TensorView& view);
  bool good_lengths(const Argument& argument, const TensorView& view, const std::int64_t* symbols);
  bool good_memory(const Argument& argument, const TensorView& view);

  // The functions that build messages stay out of line, so that the tests before them are inlined.
  bool fail_range(std::string_view name, std::int64_t value, std::int64_t low, std::int64_t high);
  bool fail_choice(const Argument& argument, std::int64_t value);
  bool fail_dtype(const Argument& argument, const TensorView& view);
  bool fail_same_dtype(const Argument& argument, const TensorView& view, const Argument& other);
  bool fail_axes(const Argument& argument, const TensorView& view);
  bool fail_length(const Argument& argument, int axis, std::int64_t expected, std::int64_t found);
  bool fail_given_length(const Argument& argument, int axis, std::int64_t found);
  bool fail_memory(const Argument& argument, const TensorView& view);
  bool fail_end(const Argument& argument, const TensorView& view);
  bool fail_overlap(const char* written, const char* other);

  const Schema& schema_;
  const void* args_;
  const Context& context_;
};

}  // namespace tessera::core
