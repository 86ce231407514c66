#include "bad_arguments.hpp"

#include <limits>
#include <utility>

namespace tessera::test {
namespace {

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;
constexpr std::int64_t kSmallest = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

/// Data types that no op takes.
constexpr dtypes::Dtype kNoOps[] = {
    {{6, 8, 1}, "bool"},          {{kDLInt, 4, 1}, "int4"},           {{kDLInt, 32, 2}, "int32x2"},
    {{kDLInt, 64, 0}, "int64x0"}, {{kDLComplex, 64, 1}, "complex64"}, {{kDLFloat, 8, 1}, "float8"}};

void make_contiguous(TensorView& view) {
  std::uint64_t step = 1;  // wraps around where a length is absurd
  for (int i = view.ndim - 1; i >= 0; --i) {
    view.strides[i] = static_cast<std::int64_t>(step);
    step *= static_cast<std::uint64_t>(view.shape[i]);
  }
}

class Maker {
 public:
  explicit Maker(GuardedCall& call) : call_(call), schema_(*call.op().schema) {
    (void)call.op().sizes(call.args(), Context{}, &sizes_);
  }

  std::vector<BadArgument> run() {
    for (const Argument& argument : schema_.arguments) {
      if (argument.is_array()) {
        spoil_array(argument);
      } else {
        spoil_number(argument);
      }
    }
    return std::move(bad_);
  }

 private:
  using Spoil = std::function<void(TensorView&)>;

  void add(const Argument& argument, const std::string& what, StatusCode code,
           const std::string& suffix, const std::string& got, const Spoil& spoil) {
    bad_.push_back({std::string(argument.name) + " " + what,
                    [&argument, spoil](void* args) { spoil(view_in(args, argument)); }, code,
                    argument.name + suffix, got});
  }

  void spoil_array(const Argument& argument) {
    if (!argument.is_optional()) {
      add(argument, "not given", kValue, "", "none", [](TensorView& view) { view = {}; });
    }
    add(argument, "without a data type", kValue, "", "one without a data type",
        [](TensorView& view) { view.dtype.bits = 0; });
    spoil_dtype(argument);
    spoil_lengths(argument);
    spoil_memory(argument);
    if (argument.extents.ndim == 0) {
      add(argument, "strided", kValue, "", "a strided one",
          [](TensorView& view) { view.contiguous = false; });
    } else {
      spoil_axes(argument);
    }
  }

  void spoil_dtype(const Argument& argument) {
    const auto add_dtype = [&](DLDataType dtype, const std::string& got) {
      add(argument, "of " + got, kType, ".dtype", got,
          [dtype](TensorView& view) { view.dtype = dtype; });
    };
    const DtypeSet allowed = allowed_dtypes(*call_.op().schema, argument, call_.args());
    for (const dtypes::Dtype& candidate : dtypes::kAll) {
      const DtypeSet set = dtypes::set_of(candidate.dtype);
      if ((set & allowed) != 0) continue;
      // DLPack names float8 by its code.
      add_dtype(candidate.dtype, set == dtypes::kFloat8E4m3 ? "" : candidate.name);
    }
    for (const dtypes::Dtype& candidate : kNoOps) add_dtype(candidate.dtype, candidate.name);
  }

  void spoil_lengths(const Argument& argument) {
    for (int axis = 0; axis < num_lengths(argument); ++axis) {
      const Length& length = argument.extents.lengths[axis];
      const std::string suffix =
          argument.extents.ndim == 0 ? ".num_elements" : ".shape[" + std::to_string(axis) + "]";
      const auto add_length = [&](std::int64_t wrong) {
        add(argument, "with length " + std::to_string(wrong), kValue, suffix, std::to_string(wrong),
            [&argument, axis, wrong](TensorView& view) {
              length_in(view, argument, axis) = wrong;
              make_contiguous(view);
            });
      };
      // Products of lengths at the ends of int64 would make a strided array of one with axes.
      const bool has_axes = argument.extents.ndim != 0;
      add_length(-1);
      if (!has_axes) add_length(kSmallest);
      if (length.bound == Length::Bound::kGives) {
        add_length(length.constant + 1);
        if (!has_axes) add_length(kLargest);
        continue;
      }
      const std::int64_t wanted =
          length.symbol < 0 ? length.constant : sizes_.symbols[length.symbol];
      if (wanted > 0) add_length(wanted - 1);
      if (length.bound != Length::Bound::kExactly) continue;
      add_length(wanted + 1);
      // Of an array that gives a symbol, strides are checked before lengths.
      if (!has_axes || !argument.gives_symbols) add_length(kLargest);
    }
  }

  void spoil_memory(const Argument& argument) {
    add(argument, "on another device", kValue, ".device", "cuda:1", [](TensorView& view) {
      view.device = {kDLCUDA, 1};
    });
    add(argument, "on a device of another number", kValue, ".device", "",
        [](TensorView& view) { view.device.device_id = 1; });
    add(argument, "on a device of another type", kValue, ".device", "device type 8:0",
        [](TensorView& view) {
          view.device = {kDLMetal, 0};
        });
    add(argument, "without memory", kValue, ".data", "a null pointer",
        [](TensorView& view) { view.data = nullptr; });
    const std::size_t width = element_bytes(view_in(call_.args(), argument));
    for (std::size_t offset = 1; offset < width; offset *= 2) {
      add(argument, "misaligned by " + std::to_string(offset), kValue, ".data",
          "an address " + std::to_string(offset) + " past such a boundary",
          [offset](TensorView& view) { view.data = static_cast<std::byte*>(view.data) + offset; });
    }
  }

  /// Adds the mistakes that only arrays with a fixed number of axes can have.
  void spoil_axes(const Argument& argument) {
    const int right = argument.extents.ndim;
    for (const int ndim : {right - 1, right + 1, 0, kMaxAxes + 1, 1 << 30}) {
      add(argument, "of " + std::to_string(ndim) + " axes", kValue, ".ndim", std::to_string(ndim),
          [ndim](TensorView& view) { view.ndim = ndim; });
    }
    const TensorView& view = view_in(call_.args(), argument);
    for (int axis = 0; axis < argument.extents.ndim; ++axis) {
      if (view.shape[axis] <= 1) continue;  // its stride addresses nothing
      // Elements of a row that has others beside it, or of one that only the last axis can be.
      const int last = argument.extents.ndim - 1;
      const bool may_be_transposed = argument.layout == Argument::Layout::kRowsApartOrTransposed;
      const bool is_in_row =
          view.strides[axis] == 1 &&
          (axis != last ? view.shape[last] > 1 : !may_be_transposed || view.shape[last - 1] > 1);
      // Rows may be any distance apart, but may not share memory.
      std::int64_t least = view.strides[axis];
      if (argument.layout == Argument::Layout::kRowsApart && !is_in_row) {
        least = view.strides[axis + 1] * view.shape[axis + 1];
      }
      std::vector<std::int64_t> wrong = {-1, 0, least - 1};
      if (is_in_row || argument.layout == Argument::Layout::kContiguous) {
        wrong.push_back(view.strides[axis] + 1);
      }
      for (const std::int64_t stride : wrong) {
        add(argument, "with stride " + std::to_string(stride) + " of axis " + std::to_string(axis),
            kValue, "", "",
            [axis, stride](TensorView& spoiled) { spoiled.strides[axis] = stride; });
      }
    }
  }

  void spoil_number(const Argument& argument) {
    const auto add_number = [&](std::int64_t wrong) {
      bad_.push_back({std::string(argument.name) + " = " + std::to_string(wrong),
                      [&argument, wrong](void* args) { set_number(args, argument, wrong); }, kValue,
                      argument.name, std::to_string(wrong)});
    };
    // All flags are right; a floating-point number is the op's own rule.
    if (argument.kind == Argument::Kind::kFlag || argument.kind == Argument::Kind::kFloat32) return;
    using Int32 = std::numeric_limits<std::int32_t>;
    const bool is_int32 = argument.kind == Argument::Kind::kInt32;
    const std::int64_t smallest = is_int32 ? Int32::min() : kSmallest;
    const std::int64_t largest = is_int32 ? Int32::max() : kLargest;
    if (argument.low > smallest) {
      add_number(argument.low - 1);
      add_number(smallest);
    }
    if (argument.high < largest) {
      add_number(argument.high + 1);
      add_number(largest);
    }
  }

  GuardedCall& call_;
  const Schema& schema_;
  OpSizes sizes_;
  std::vector<BadArgument> bad_;
};

}  // namespace

std::vector<BadArgument> bad_arguments(GuardedCall& call) { return Maker(call).run(); }

bool has_house_form(const std::string& message, const std::string& op, const BadArgument& bad) {
  return message.starts_with(op + ": " + bad.argument + ": expected ") &&
         message.find(", got ") != std::string::npos &&
         (bad.got.empty() || message.ends_with(", got " + bad.got));
}

}  // namespace tessera::test
