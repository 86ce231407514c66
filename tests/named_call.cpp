#include "named_call.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "op_arguments.hpp"

namespace tessera::test {
namespace {

/// One axis of all elements, unless the view has axes that hold as many.
void set_flat(const TensorView& view, tessera_argument* array) {
  std::int64_t elements = 1;
  bool is_small = view.contiguous && view.ndim >= 0 && view.ndim <= kMaxAxes;
  for (int axis = 0; is_small && axis < view.ndim; ++axis) {
    is_small = view.shape[axis] >= 0 && view.shape[axis] <= kInt32Max && elements <= kInt32Max;
    elements *= is_small ? view.shape[axis] : 1;
  }
  if (is_small && elements == view.num_elements) {
    array->ndim = view.ndim;
    std::ranges::copy(view.shape, array->shape);
  } else {
    array->ndim = 1;
    array->shape[0] = view.num_elements;
    array->strides[0] = view.contiguous ? 0 : 2;
  }
}

tessera_argument array_of(const Argument& argument, const TensorView& view) {
  tessera_argument array{};
  array.name = argument.name;
  array.data = view.data;
  array.dtype = std::countr_zero(dtypes::set_of(view.dtype));
  if (argument.extents.ndim == 0) {
    set_flat(view, &array);
  } else {
    array.ndim = view.ndim;
    std::ranges::copy(view.shape, array.shape);
    std::ranges::copy(view.strides, array.strides);
  }
  return array;
}

bool can_be_named(const Argument& argument, const TensorView& view, DLDevice device) {
  if (!view.given()) return view.data == nullptr && view.num_elements == 0;
  if (dtypes::set_of(view.dtype) == 0 || view.device.device_type != device.device_type ||
      view.device.device_id != device.device_id) {
    return false;
  }
  // The C API refuses so many axes of any array by itself.
  if (argument.extents.ndim != 0 && view.ndim > kMaxAxes) return false;
  const tessera_argument array = array_of(argument, view);
  if (array.data == nullptr && array.ndim == 0) return false;
  if (argument.extents.ndim == 0) {
    // Some ops also read the axes, which set_flat() loses if they have another number of elements.
    const bool has_axes = view.ndim > 0 && view.ndim <= kMaxAxes;
    return (view.contiguous || view.num_elements > 1) &&
           (!has_axes || std::equal(view.shape, view.shape + view.ndim, array.shape));
  }
  // All zero strides stand for contiguous rows.
  return std::ranges::any_of(array.strides, [](std::int64_t stride) { return stride != 0; });
}

Status status_of(tessera_status code) {
  if (code == TESSERA_OK) return {};
  return {static_cast<StatusCode>(code), tessera_last_error()};
}

}  // namespace

void set_value(std::int64_t number, const Argument& argument, tessera_argument* named) {
  if (argument.kind == Argument::Kind::kFloat32) {
    named->real = double{std::bit_cast<float>(static_cast<std::int32_t>(number))};
  } else {
    named->value = number;
  }
}

NamedCall::NamedCall(const OpEntry& op, const void* args_struct, const Context& context) {
  for (const Argument& argument : op.schema->arguments) {
    if (!argument.is_array()) {
      tessera_argument number{};
      number.name = argument.name;
      arguments.push_back(number);
      set_value(number_in(args_struct, argument), argument, &arguments.back());
    } else if (const TensorView& view = view_in(args_struct, argument); view.given()) {
      arguments.push_back(array_of(argument, view));
    }
  }
  args.struct_size = sizeof(args);
  args.op = op.schema->op.data();
  args.device_type = context.device.device_type == kDLCPU ? TESSERA_CPU : TESSERA_CUDA;
  args.device_id = context.device.device_id;
  args.stream = context.stream;
  args.workspace = context.workspace.data();
  args.workspace_bytes = context.workspace.size();
  args.num_threads = context.num_threads;
  args.implementation = context.implementation.empty() ? nullptr : context.implementation.data();
  args.arguments = arguments.data();
  args.num_arguments = arguments.size();
}

tessera_argument& NamedCall::at(std::string_view name) {
  return *std::ranges::find_if(arguments, [name](const tessera_argument& argument) {
    return argument.name != nullptr && argument.name == name;
  });
}

Status NamedCall::query() { return status_of(tessera_query(&args)); }

Status NamedCall::run() const { return status_of(tessera_call(&args)); }

bool can_be_named(const OpEntry& op, const void* args, const Context& context) {
  return std::ranges::all_of(op.schema->arguments, [&](const Argument& argument) {
    return !argument.is_array() || can_be_named(argument, view_in(args, argument), context.device);
  });
}

}  // namespace tessera::test
