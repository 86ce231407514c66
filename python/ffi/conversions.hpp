// Conversions between Python's FFI and Tessera, for every op by its table.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <limits>
#include <new>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/ops.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::python {

namespace ffi = tvm::ffi;

inline void throw_unless_ok(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidType:
      TVM_FFI_THROW(TypeError) << status.message();
    case StatusCode::kInvalidValue:
      TVM_FFI_THROW(ValueError) << status.message();
    case StatusCode::kUnsupported:
      TVM_FFI_THROW(NotImplementedError) << status.message();
    case StatusCode::kRuntimeError:
      TVM_FFI_THROW(RuntimeError) << status.message();
  }
}

/// Python's integers arrive as 64 bits; some are taken as 32.
inline std::int32_t int32_of(std::string_view op, const char* argument, std::int64_t value) {
  if (value < std::numeric_limits<std::int32_t>::min() ||
      value > std::numeric_limits<std::int32_t>::max()) {
    TVM_FFI_THROW(ValueError) << op << ": " << argument << ": expected an integer of 32 bits, got "
                              << value;
  }
  return static_cast<std::int32_t>(value);
}

/// A value of this type. Python's side finds out which argument is none, and says so.
template <typename T>
T value_of(ffi::AnyView value) {
  const auto converted = value.try_cast<T>();
  if (!converted.has_value()) TVM_FFI_THROW(TypeError) << "an argument has another type";
  return *converted;
}

/// An integer, and no bool, which the FFI takes for one.
inline std::int64_t integer_of(ffi::AnyView value) {
  if (value.type_index() == ffi::TypeIndex::kTVMFFIBool) {
    TVM_FFI_THROW(TypeError) << "an integer is a bool";
  }
  return value_of<std::int64_t>(value);
}

/// A span whose elements are checked: too few values are an error of the caller, and no crash.
class Values {
 public:
  Values(const ffi::AnyView* values, std::size_t size) : values_(values), size_(size) {}

  std::size_t size() const { return size_; }

  ffi::AnyView operator[](std::size_t i) const {
    if (i >= size_) TVM_FFI_THROW(TypeError) << "expected more than " << size_ << " values";
    return values_[i];
  }

  Values from(std::size_t first) const {
    const std::size_t start = std::min(first, size_);
    return {values_ + start, size_ - start};
  }

 private:
  const ffi::AnyView* values_;
  std::size_t size_;
};

/// A view; None stands for an array that is not given.
inline TensorView view_of(ffi::AnyView value) {
  if (value == nullptr) return {};
  return TensorView::of(*value_of<DLTensor*>(value));
}

inline DLDataType dtype_named(const ffi::String& name) {
  for (const dtypes::Dtype& one : dtypes::kAll) {
    if (std::string_view(name.data(), name.size()) == one.name) return one.dtype;
  }
  TVM_FFI_THROW(ValueError) << "no data type is named '" << std::string(name) << "'";
  TVM_FFI_UNREACHABLE();
}

/// A contiguous array without memory, from the name of its data type and its shape.
inline TensorView described_view(ffi::AnyView value) {
  const auto description = value_of<ffi::Array<ffi::Any>>(value);
  std::vector<std::int64_t> shape;
  for (std::size_t i = 1; i < description.size(); ++i) {
    shape.push_back(value_of<std::int64_t>(description[static_cast<std::int64_t>(i)]));
  }
  DLTensor tensor{};
  tensor.device = kHostDevice;
  tensor.ndim = static_cast<std::int32_t>(shape.size());
  tensor.dtype = dtype_named(description[0].cast<ffi::String>());
  tensor.shape = shape.data();
  return TensorView::of(tensor);
}

/// Memory of an array of bytes; empty for None.
inline std::span<std::byte> bytes_of(ffi::AnyView value) {
  const TensorView view = view_of(value);
  return {static_cast<std::byte*>(view.data),
          static_cast<std::size_t>(view.num_elements) * view.dtype.bits / 8};
}

/// Returns a copy, because the FFI returns text by value, with a short text inside that value.
inline std::string text_of(ffi::AnyView value) {
  return value == nullptr ? std::string() : std::string(value_of<ffi::String>(value));
}

/// An op's argument struct, filled in by the table.
class Arguments {
 public:
  /// `asks_sizes`: the values come from a size query. It leaves out arrays that no size depends on,
  /// and may have the number of elements, or data type and shape, in place of an array:
  /// ("bfloat16", 16, 8, 7168).
  explicit Arguments(const OpEntry& op, bool asks_sizes = false)
      : op_(op), asks_sizes_(asks_sizes) {
    std::memcpy(memory_, op.default_args, op.args_bytes);
  }

  const void* get() const { return memory_; }

  TensorView& view(const Argument& argument) { return view_in(memory_, argument); }

  /// Reads a value; None where there is none.
  void read(const Argument& argument, ffi::AnyView value) {
    switch (argument.kind) {
      case Argument::Kind::kArray:
        if (asks_sizes_ && value.type_index() == ffi::TypeIndex::kTVMFFIInt) {
          view(argument).num_elements = value_of<std::int64_t>(value);
        } else if (asks_sizes_ && value.type_index() == ffi::TypeIndex::kTVMFFIArray) {
          view(argument) = described_view(value);
        } else if (value == nullptr && !argument.is_optional() && !asks_sizes_) {
          TVM_FFI_THROW(TypeError) << "a required array is None";
        } else {
          new (&view(argument)) TensorView(view_of(value));  // a copy would wait for the fields
          if ((argument.dtypes & dtypes::kFloat8E4m3) != 0) take_bits(&view(argument));
        }
        return;
      case Argument::Kind::kInt64:
        set_number(memory_, argument,
                   value == nullptr && argument.row_length_of >= 0
                       ? row_length(op_.schema->arguments[argument.row_length_of])
                       : integer_of(value));
        return;
      case Argument::Kind::kInt32:
        set_number(memory_, argument,
                   argument.choices.empty()
                       ? int32_of(op_.schema->op, argument.name, integer_of(value))
                       : choice_named(argument, value_of<ffi::String>(value)));
        return;
      case Argument::Kind::kFloat32:  // None keeps the default
        if (value != nullptr) {
          set_number(memory_, argument,
                     std::bit_cast<std::int32_t>(float_of(argument, value_of<double>(value))));
        }
        return;
      case Argument::Kind::kFlag:
        set_number(memory_, argument, value_of<bool>(value) ? 1 : 0);
        return;
    }
  }

  /// Reads values in the order of the table; what is missing at the end keeps its default.
  void read(Values values) {
    const auto rows = op_.schema->arguments;
    for (std::size_t i = 0; i < std::min(rows.size(), values.size()); ++i) read(rows[i], values[i]);
  }

  /// Reads a value for each of these rows. Returns their number.
  std::size_t read(std::span<const Argument> rows, Values values) {
    std::size_t i = 0;
    for (const Argument& argument : rows) read(argument, values[i++]);
    return i;
  }

  /// Reads all that follows the required outputs; what is missing at the end keeps its default.
  void read_options(Values values) {
    std::size_t i = 0;
    for (const auto part : {op_.schema->numbers, op_.schema->rest}) {
      for (const Argument& argument : part) {
        if (i == values.size()) return;
        read(argument, values[i++]);
      }
    }
  }

 private:
  /// NumPy and CuPy have no float8, and hold its bits as uint8.
  static void take_bits(TensorView* view) {
    if (view->dtype.code == kDLUInt && view->dtype.bits == 8) {
      view->dtype.code = dtypes::kFloat8E4m3Code;
    }
  }

  /// Refuses a NaN, which in C++ stands for "not given", and what float32 has no value near to.
  float float_of(const Argument& argument, double value) {
    const auto found = static_cast<float>(value);
    if (std::isnan(value) || std::isinf(found) != std::isinf(value) ||
        (found == 0) != (value == 0)) {
      std::ostringstream text;
      text << value;
      TVM_FFI_THROW(ValueError) << op_.schema->op << ": " << argument.name
                                << ": expected a number that "
                                << (std::isnan(value) ? "is not NaN" : "float32 holds") << ", got "
                                << text.str();
    }
    return found;
  }

  std::int64_t choice_named(const Argument& argument, const ffi::String& name) {
    const std::string_view wanted(name.data(), name.size());
    for (std::size_t i = 0; i < argument.choices.size(); ++i) {
      if (wanted == argument.choices[i]) return static_cast<std::int64_t>(i);
    }
    std::string known;
    for (const char* const choice : argument.choices) {
      known += (known.empty() ? "" : ", ") + std::string(choice);
    }
    TVM_FFI_THROW(ValueError) << op_.schema->op << ": " << argument.name << ": expected one of "
                              << known << ", got " << wanted;
    TVM_FFI_UNREACHABLE();
  }

  std::int64_t row_length(const Argument& array) {
    const TensorView& rows = view(array);
    // A view whose number of elements overflows may have no rows. It is refused later, as is one of
    // longer rows, so that the message names it, not the number, which callers do not give.
    const bool has_rows = rows.num_elements != 0 && rows.ndim != 0 && rows.shape[0] > 0;
    return has_rows ? std::min(rows.num_elements / rows.shape[0], kInt32Max) : 1;
  }

  const OpEntry& op_;
  bool asks_sizes_;
  alignas(std::max_align_t) std::byte memory_[kMaxArgsBytes];
};

inline std::string json_string(const std::string& text) {
  return ffi::EscapeString(ffi::String(text));
}

/// "[a,b,...]" of what `to_json` makes of each element.
template <typename Elements, typename ToJson>
std::string json_array(const Elements& elements, ToJson to_json) {
  std::string json;
  for (const auto& element : elements) {
    json += (json.empty() ? "" : ",") + to_json(element);
  }
  return "[" + json + "]";
}

/// A number as Python passes it: a flag as a bool, a choice by its name, a float that is not given
/// as null.
inline std::string number_json(const Argument& argument, const void* args) {
  const std::int64_t number = number_in(args, argument);
  if (argument.kind == Argument::Kind::kFlag) return number != 0 ? "true" : "false";
  if (argument.kind == Argument::Kind::kFloat32) {
    const auto value = std::bit_cast<float>(static_cast<std::int32_t>(number));
    if (std::isnan(value)) return "null";
    if (std::isinf(value))
      return value > 0 ? "Infinity" : "-Infinity";  // as Python's json reads it
    std::ostringstream text;
    text << std::setprecision(std::numeric_limits<float>::max_digits10) << value;
    return text.str();
  }
  if (!argument.choices.empty()) return json_string(argument.choices[number]);
  return std::to_string(number);
}

inline const OpEntry& op_named(const ffi::String& name) {
  const OpEntry* op = find_op(std::string(name));
  if (op == nullptr) TVM_FFI_THROW(ValueError) << "no op is named '" << std::string(name) << "'";
  return *op;
}

}  // namespace tessera::python
