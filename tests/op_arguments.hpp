// The members of an op's argument struct, reached through the op's table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "contracts.hpp"
#include "tessera/context.hpp"
#include "tessera/ops.hpp"
#include "tessera/schema.hpp"

namespace tessera::test {

inline std::size_t element_bytes(const TensorView& view) { return view.dtype.bits / 8U; }

/// The bytes from the first element to the last, gaps between rows included.
inline std::size_t bytes_of(const TensorView& view) {
  std::int64_t elements = view.num_elements;
  if (!view.contiguous && elements > 0) {
    elements = 1;
    for (int i = 0; i < view.ndim; ++i) elements += (view.shape[i] - 1) * view.strides[i];
  }
  return static_cast<std::size_t>(elements) * element_bytes(view);
}

/// The elements of the array in that memory, without the gaps between rows.
std::vector<std::byte> elements_in(std::span<const std::byte> memory, const TensorView& view);

/// Whether all bytes of that memory which belong to no element of the array have this value.
bool has_gaps_of(std::byte value, std::span<const std::byte> memory, const TensorView& view);

/// The part of an output that a finished call has written: without the rows that the op's contract
/// leaves as they were. `args` points to the argument struct, with all outputs in host memory.
TensorView written_part(const contract::OpContract& contract, const Argument& argument,
                        const void* args);

/// The number of axes in the table; 1 if the table counts all elements of the array.
inline int num_lengths(const Argument& argument) {
  return argument.extents.ndim == 0 ? 1 : argument.extents.ndim;
}
/// The length of that axis of the view.
inline std::int64_t& length_in(TensorView& view, const Argument& argument, int axis) {
  return argument.extents.ndim == 0 ? view.num_elements : view.shape[axis];
}

/// The row of that name in the op's table; there must be one.
const Argument& argument_named(const Schema& schema, std::string_view name);

/// A small random case of the op in which every argument is given, no array is empty, and outputs
/// are contiguous.
contract::CaseArguments full_arguments(const contract::OpContract& contract);

/// Whether each array has the lengths that the table asks for, once symbols have these values.
bool has_right_lengths(const Schema& schema, const void* args, const std::int64_t* symbols);

/// Elements of all arrays of a call.
std::int64_t num_elements_of(const contract::CaseArguments& made);

/// The implementations that run these arguments on that device, beginning with the selected one.
std::vector<std::string> implementations_of(const contract::CaseArguments& made,
                                            DLDevice device = kHostDevice);

}  // namespace tessera::test
