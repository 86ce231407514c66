// The arguments of an op as one table. It drives validation with its messages, the bindings, and
// the tests of all arguments and of the pages' tables; signatures and contracts are written by
// hand.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>

#include "tessera/tensor_view.hpp"

namespace tessera {

inline constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

/// A set of data types, one bit each.
using DtypeSet = std::uint32_t;

namespace dtypes {

/// DLPack's code of float8_e4m3fn, which headers older than DLPack 1.1 do not name.
inline constexpr std::uint8_t kFloat8E4m3Code = 10;

/// A data type of the ops. `name` is its name in messages, NumPy and torch.
struct Dtype {
  DLDataType dtype;
  const char* name;
};

/// Bit i of a DtypeSet stands for element i.
inline constexpr Dtype kAll[] = {
    {{kDLInt, 8, 1}, "int8"},
    {{kDLUInt, 8, 1}, "uint8"},
    {{kDLInt, 16, 1}, "int16"},
    {{kDLUInt, 16, 1}, "uint16"},
    {{kDLInt, 32, 1}, "int32"},
    {{kDLUInt, 32, 1}, "uint32"},
    {{kDLInt, 64, 1}, "int64"},
    {{kDLUInt, 64, 1}, "uint64"},
    {{kDLFloat, 16, 1}, "float16"},
    {{kDLBfloat, 16, 1}, "bfloat16"},
    {{kDLFloat, 32, 1}, "float32"},
    {{kDLFloat, 64, 1}, "float64"},
    {{kFloat8E4m3Code, 8, 1}, "float8_e4m3fn"},
};
inline constexpr int kNumDtypes = static_cast<int>(std::size(kAll));

inline constexpr DtypeSet kIntegers = 0xff;
inline constexpr DtypeSet kInt32 = 1 << 4;
inline constexpr DtypeSet kInt64 = 1 << 6;
inline constexpr DtypeSet kFloat16 = 1 << 8;
inline constexpr DtypeSet kBfloat16 = 1 << 9;
inline constexpr DtypeSet kFloat32 = 1 << 10;
inline constexpr DtypeSet kFloat64 = 1 << 11;
inline constexpr DtypeSet kFloat8E4m3 = 1 << 12;

/// The set of this data type alone; empty if no op takes it.
constexpr DtypeSet set_of(DLDataType dtype) noexcept {
  if (dtype.lanes != 1) return 0;
  const int width = dtype.bits == 8 ? 0 : dtype.bits == 16 ? 1 : dtype.bits == 32 ? 2 : 3;
  if (dtype.bits != 8 << width) return 0;
  switch (dtype.code) {
    case kDLInt:
      return 1U << (2 * width);
    case kDLUInt:
      return 1U << (2 * width + 1);
    case kDLFloat:
      return width == 1 ? kFloat16 : width == 2 ? kFloat32 : width == 3 ? kFloat64 : 0;
    case kDLBfloat:
      return width == 1 ? kBfloat16 : 0;
    case kFloat8E4m3Code:
      return width == 0 ? kFloat8E4m3 : 0;
    default:
      return 0;
  }
}

}  // namespace dtypes

/// A length that the table names: a constant, or the value of a symbol.
struct Length {
  enum class Bound : std::uint8_t {
    kExactly,  ///< exactly that number of elements
    kAtLeast,  ///< that number or more
    kGives,    ///< any number up to `constant`: gives the symbol its value
  };

  Bound bound = Bound::kAtLeast;
  std::int8_t symbol = -1;  ///< index into Schema::symbols; -1: `constant`
  std::int64_t constant = 0;
};

constexpr Length exactly(std::int8_t symbol) { return {Length::Bound::kExactly, symbol, 0}; }
constexpr Length at_least(std::int8_t symbol) { return {Length::Bound::kAtLeast, symbol, 0}; }
constexpr Length constantly(std::int64_t length) { return {Length::Bound::kExactly, -1, length}; }
constexpr Length gives(std::int8_t symbol, std::int64_t most = kInt32Max) {
  return {Length::Bound::kGives, symbol, most};
}
constexpr Length any_length() { return {}; }

/// The shape that the table asks of an array.
struct Extents {
  std::int8_t ndim = 0;  ///< axes; 0: any, as `lengths[0]` counts all elements
  Length lengths[kMaxAxes] = {};
};

/// An array of any shape, which the op reads in row-major order.
constexpr Extents flat(Length num_elements) { return {0, {num_elements}}; }

/// An array of as many axes as there are lengths.
template <typename... Lengths>
constexpr Extents axes(Lengths... lengths) {
  static_assert(sizeof...(lengths) <= kMaxAxes);
  return {sizeof...(lengths), {lengths...}};
}

/// One argument: an array, a number or a flag. Made by TESSERA_ARGUMENT and the functions below.
struct Argument {
  enum class Kind : std::uint8_t { kArray, kInt64, kInt32, kFlag, kFloat32 };
  /// Strides that an array may have.
  enum class Layout : std::uint8_t {
    kContiguous,
    kRowsApart,              ///< only the last axis is contiguous
    kRowsApartOrTransposed,  ///< that, or the same with the last two axes exchanged
  };
  enum class Role : std::uint8_t { kInput, kOptionalInput, kOutput, kOptionalOutput };

  const char* name = nullptr;
  Kind kind = Kind::kArray;
  std::uint32_t offset = 0;  ///< of the member in the op's argument struct

  // Arrays.
  Role role = Role::kInput;
  DtypeSet dtypes = 0;
  DLDataType first_dtype{};  ///< the first of them; most arguments have only one
  /// Index of an earlier argument that it shares its dtype with, as far as `dtypes` has that.
  std::int8_t same_dtype_as = -1;
  DtypeSet other_dtypes = 0;  ///< of `dtypes`, what it may have instead
  /// Of an output: what bindings make it of where `dtypes` lacks the shared one; one dtype, or
  /// none.
  DtypeSet made_as = 0;
  Layout layout = Layout::kContiguous;
  Extents extents;
  bool gives_symbols = false;  ///< whether one of the lengths gives a symbol its value

  // Numbers.
  std::int8_t symbol = -1;  ///< the symbol whose value the number is; -1: none
  std::int64_t low = std::numeric_limits<std::int64_t>::min();
  std::int64_t high = std::numeric_limits<std::int64_t>::max();
  /// Index of the array argument whose rows, along its first axis, have this many elements.
  /// Bindings that know its shape derive the number from it; -1: callers pass the number.
  std::int8_t row_length_of = -1;
  /// Names of the numbers 0, 1 ...; empty: the number has no names.
  std::span<const char* const> choices;

  constexpr bool is_array() const { return kind == Kind::kArray; }
  constexpr bool is_output() const {
    return role == Role::kOutput || role == Role::kOptionalOutput;
  }
  constexpr bool is_optional() const {
    return role == Role::kOptionalInput || role == Role::kOptionalOutput;
  }

  constexpr Argument input(DtypeSet set, Extents size) const {
    return array(Role::kInput, set, size);
  }
  constexpr Argument optional_input(DtypeSet set, Extents size) const {
    return array(Role::kOptionalInput, set, size);
  }
  constexpr Argument output(DtypeSet set, Extents size) const {
    return array(Role::kOutput, set, size);
  }
  constexpr Argument optional_output(DtypeSet set, Extents size) const {
    return array(Role::kOptionalOutput, set, size);
  }

  constexpr Argument with_dtype_of(std::int8_t argument) const {
    Argument changed = *this;
    changed.same_dtype_as = argument;
    return changed;
  }

  constexpr Argument or_dtype(DtypeSet set) const {
    Argument changed = *this;
    changed.other_dtypes = set;
    return changed;
  }

  constexpr Argument else_made_as(DtypeSet dtype) const {
    Argument changed = *this;
    changed.made_as = dtype;
    return changed;
  }

  constexpr Argument with_rows_apart() const {
    Argument changed = *this;
    changed.layout = Layout::kRowsApart;
    return changed;
  }

  constexpr Argument with_rows_apart_or_transposed() const {
    Argument changed = *this;
    changed.layout = Layout::kRowsApartOrTransposed;
    return changed;
  }

  constexpr Argument between(std::int64_t new_low, std::int64_t new_high) const {
    Argument changed = *this;
    changed.low = new_low;
    changed.high = new_high;
    return changed;
  }

  constexpr Argument one_of(std::span<const char* const> names) const {
    Argument changed = between(0, static_cast<std::int64_t>(names.size()) - 1);
    changed.choices = names;
    return changed;
  }

  constexpr Argument as_row_length_of(std::int8_t argument) const {
    Argument changed = *this;
    changed.row_length_of = argument;
    return changed;
  }

  constexpr Argument giving(std::int8_t new_symbol) const {
    Argument changed = *this;
    changed.symbol = new_symbol;
    return changed;
  }

 private:
  constexpr Argument array(Role new_role, DtypeSet set, Extents size) const {
    Argument changed = *this;
    changed.role = new_role;
    changed.dtypes = set;
    for (int i = dtypes::kNumDtypes - 1; i >= 0; --i) {
      if ((set >> i & 1) != 0) changed.first_dtype = dtypes::kAll[i].dtype;
    }
    changed.extents = size;
    for (const Length& length : size.lengths) {
      changed.gives_symbols |= length.bound == Length::Bound::kGives;
    }
    return changed;
  }
};

/// The row of a member of an argument struct, whose type decides the kind.
template <typename Member>
constexpr Argument argument(const char* name, std::size_t offset) {
  Argument row;
  row.name = name;
  row.offset = static_cast<std::uint32_t>(offset);
  if constexpr (std::is_same_v<Member, std::int64_t>) {
    row.kind = Argument::Kind::kInt64;
  } else if constexpr (std::is_same_v<Member, std::int32_t> || std::is_enum_v<Member>) {
    static_assert(sizeof(Member) == sizeof(std::int32_t));
    row.kind = Argument::Kind::kInt32;
    row = row.between(std::numeric_limits<std::int32_t>::min(),
                      std::numeric_limits<std::int32_t>::max());
  } else if constexpr (std::is_same_v<Member, bool>) {
    row.kind = Argument::Kind::kFlag;
  } else if constexpr (std::is_same_v<Member, float>) {
    row.kind = Argument::Kind::kFloat32;
  } else {
    static_assert(std::is_same_v<Member, TensorView>);
  }
  return row;
}

#define TESSERA_ARGUMENT(Args, member) \
  ::tessera::argument<decltype(Args::member)>(#member, offsetof(Args, member))

/// An op's table, in this order: inputs, of which the first is required and gives the call its
/// device; required outputs; numbers and flags; optional outputs and flags that few calls give.
struct Schema {
  constexpr Schema(std::string_view name, std::span<const Argument> rows,
                   std::span<const char* const> names)
      : op(name), arguments(rows), symbols(names), rest(rows) {
    inputs = take([](const Argument& row) { return row.is_array() && !row.is_output(); });
    outputs = take([](const Argument& row) { return row.is_array() && !row.is_optional(); });
    numbers = take([](const Argument& row) { return !row.is_array(); });
  }

  std::string_view op;
  std::span<const Argument> arguments;
  /// Names of the op's lengths on its page, such as "N" and "capacity".
  std::span<const char* const> symbols;

  // The parts of `arguments`.
  std::span<const Argument> inputs;
  std::span<const Argument> outputs;
  std::span<const Argument> numbers;
  std::span<const Argument> rest;

 private:
  /// Removes the leading rows of `rest` that belong to a part, and returns them.
  constexpr std::span<const Argument> take(bool (*is_of_part)(const Argument&)) {
    std::size_t count = 0;
    while (count < rest.size() && is_of_part(rest[count])) ++count;
    const std::span<const Argument> part = rest.first(count);
    rest = rest.subspan(count);
    return part;
  }
};

// The members of an op's argument struct, by the rows of its table.

inline TensorView& view_in(void* args, const Argument& argument) {
  return *reinterpret_cast<TensorView*>(static_cast<std::byte*>(args) + argument.offset);
}
inline const TensorView& view_in(const void* args, const Argument& argument) {
  return *reinterpret_cast<const TensorView*>(static_cast<const std::byte*>(args) +
                                              argument.offset);
}

/// The data types that an argument may have, given the data types of the arguments before it.
inline DtypeSet allowed_dtypes(const Schema& schema, const Argument& argument, const void* args) {
  if (argument.same_dtype_as < 0) return argument.dtypes;
  const TensorView& other = view_in(args, schema.arguments[argument.same_dtype_as]);
  const DtypeSet shared = dtypes::set_of(other.dtype) & argument.dtypes;
  return shared != 0 ? shared | argument.other_dtypes : argument.dtypes;
}

/// 0 or 1 for a flag; the bits of a float32, as an int32.
inline std::int64_t number_in(const void* args, const Argument& argument) {
  const std::byte* const member = static_cast<const std::byte*>(args) + argument.offset;
  switch (argument.kind) {
    case Argument::Kind::kInt32:
    case Argument::Kind::kFloat32:
      return *reinterpret_cast<const std::int32_t*>(member);
    case Argument::Kind::kFlag:
      return *reinterpret_cast<const bool*>(member) ? 1 : 0;
    default:
      return *reinterpret_cast<const std::int64_t*>(member);
  }
}

/// `value` must fit the member; a flag is set unless it is 0; a float32 gets these bits.
inline void set_number(void* args, const Argument& argument, std::int64_t value) {
  std::byte* const member = static_cast<std::byte*>(args) + argument.offset;
  switch (argument.kind) {
    case Argument::Kind::kInt32:
    case Argument::Kind::kFloat32:
      *reinterpret_cast<std::int32_t*>(member) = static_cast<std::int32_t>(value);
      return;
    case Argument::Kind::kFlag:
      *reinterpret_cast<bool*>(member) = value != 0;
      return;
    default:
      *reinterpret_cast<std::int64_t*>(member) = value;
  }
}

/// Symbols that a schema may have.
inline constexpr std::size_t kMaxSymbols = 10;

}  // namespace tessera
