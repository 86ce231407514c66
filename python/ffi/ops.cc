// Python's exports of the ops, all by their tables, and of what the library says of itself.
#include <vector>

#include "run.hpp"
#include "tessera/info.hpp"

namespace tessera::python {
namespace {

/// Runs a call on the device of its first array, and there on the stream that the framework of the
/// arrays has made current.
std::int64_t run_on_current_stream(const OpEntry& op, Arguments& arguments,
                                   ffi::AnyView workspace = {}, std::int64_t num_threads = 0,
                                   ffi::AnyView implementation = {}) {
  const std::string chosen = text_of(implementation);  // outlives the context
  Context context;
  context.device = arguments.view(op.schema->arguments[0]).device;
  context.num_threads = int32_of(op.schema->op, "num_threads", num_threads);
  context.implementation = chosen;
  if (context.device.device_type == kDLCPU) return run(op, arguments, context);
  context.stream = TVMFFIEnvGetStream(context.device.device_type, context.device.device_id);
  return run(op, arguments, context, bytes_of(workspace));
}

/// values: workspace, num_threads, implementation, then the op's arguments.
std::int64_t call(const OpEntry& op, Values values) {
  Arguments arguments(op);
  arguments.read(values.from(3));
  return run_on_current_stream(op, arguments, values[0], integer_of(values[1]), values[2]);
}

/// Most calls: with one input, and no workspace, number of threads nor implementation. Each value
/// that crosses the boundary costs a short call a hundredth of its time.
/// values: the first input, the required outputs, then numbers and the rest.
std::int64_t call_plain(const OpEntry& op, Values values) {
  Arguments arguments(op);
  std::size_t next = arguments.read(op.schema->inputs.first(1), values);
  next += arguments.read(op.schema->outputs, values.from(next));
  arguments.read_options(values.from(next));
  return run_on_current_stream(op, arguments);
}

/// Required outputs in one array, each at a multiple of 128 bytes: 16-byte loads and TMA may then
/// read them, and a compiler that specialises on the alignment of pointers compiles for one only.
class JoinedOutputs {
 public:
  explicit JoinedOutputs(std::size_t element_bytes) : step_(128 / element_bytes) {}

  /// Where an output of this length begins.
  std::int64_t add(std::int64_t length) {
    const std::int64_t begin = (end_ + step_ - 1) / step_ * step_;
    end_ = begin + length;
    return begin;
  }

  std::int64_t end() const { return end_; }

 private:
  std::int64_t step_;
  std::int64_t end_ = 0;
};

/// Elements [begin, begin + length) of an array.
TensorView part_of(const TensorView& array, std::int64_t begin, std::int64_t length) {
  if (length < 0 || begin > array.num_elements - length) {
    TVM_FFI_THROW(ValueError) << "expected an array of at least " << begin + length << " elements";
  }
  TensorView part = array;
  part.data = static_cast<std::byte*>(array.data) + begin * (array.dtype.bits / 8);
  part.num_elements = length;
  return part;
}

/// Reads required outputs that are in one array, and all that follows them: to take two arrays
/// fewer across the boundary saves a short call a tenth of its time. values: this array, the length
/// of each output but the last, which gets the rest, then numbers and the rest.
void read_joined(const OpEntry& op, Values values, Arguments* arguments_read) {
  Arguments& arguments = *arguments_read;
  const TensorView array = view_of(values[0]);
  JoinedOutputs joined(array.dtype.bits / 8U);
  const Argument* last = nullptr;
  std::size_t next = 1;
  for (const Argument& argument : op.schema->outputs) {
    if (last != nullptr) {
      const auto length = value_of<std::int64_t>(values[next++]);
      arguments.view(*last) = part_of(array, joined.add(length), length);
    }
    last = &argument;
  }
  const std::int64_t begin = joined.add(0);
  arguments.view(*last) = part_of(array, begin, array.num_elements - begin);
  arguments.read_options(values.from(next));
}

/// call() with joined outputs.
std::int64_t call_joined(const OpEntry& op, Values values) {
  Arguments arguments(op);
  const std::size_t num_inputs = arguments.read(op.schema->inputs, values.from(3));
  read_joined(op, values.from(3 + num_inputs), &arguments);
  return run_on_current_stream(op, arguments, values[0], integer_of(values[1]), values[2]);
}

/// call_plain() with joined outputs.
std::int64_t call_joined_plain(const OpEntry& op, Values values) {
  Arguments arguments(op);
  const std::size_t num_inputs = arguments.read(op.schema->inputs.first(1), values);
  read_joined(op, values.from(num_inputs), &arguments);
  return run_on_current_stream(op, arguments);
}

DLDevice device_of(const OpEntry& op, ffi::AnyView type, ffi::AnyView index) {
  return {static_cast<DLDeviceType>(value_of<std::int64_t>(type)),
          int32_of(op.schema->op, "device", value_of<std::int64_t>(index))};
}

/// Writes bytes of workspace and the values of all symbols to an int64 array, and, as far as it is
/// longer, where each required output begins in a joined array, and the length of that array.
/// values: device type and number, num_threads, implementation, the int64 array, then the op's
/// arguments but the required outputs, where a number of elements, or a data type and a shape, may
/// stand for an array.
void sizes(const OpEntry& op, Values values) {
  Arguments arguments(op, /*asks_sizes=*/true);
  const std::string implementation = text_of(values[3]);
  Context context;
  context.device = device_of(op, values[0], values[1]);
  context.num_threads = int32_of(op.schema->op, "num_threads", value_of<std::int64_t>(values[2]));
  context.implementation = implementation;
  const std::size_t num_inputs = arguments.read(op.schema->inputs, values.from(5));
  arguments.read_options(values.from(5 + num_inputs));
  OpSizes found;
  throw_unless_ok(op.sizes(arguments.get(), context, &found));

  std::vector<std::int64_t> written{static_cast<std::int64_t>(found.workspace_bytes)};
  for (std::size_t i = 0; i < op.schema->symbols.size(); ++i) written.push_back(found.symbols[i]);
  JoinedOutputs joined(sizeof(std::int32_t));
  for (const Argument& argument : op.schema->outputs) {
    const Length& length = argument.extents.lengths[0];
    written.push_back(
        joined.add(length.symbol < 0 ? length.constant : found.symbols[length.symbol]));
  }
  written.push_back(joined.end());
  const TensorView out = view_of(values[4]);
  std::memcpy(out.data, written.data(),
              8 * std::min<std::size_t>(out.num_elements, written.size()));
}

/// values: device type and number, num_threads, then as for sizes().
std::string explain(const OpEntry& op, Values values) {
  Arguments arguments(op, /*asks_sizes=*/true);
  Context context;
  context.device = device_of(op, values[0], values[1]);
  context.num_threads = int32_of(op.schema->op, "num_threads", value_of<std::int64_t>(values[2]));
  const std::size_t num_inputs = arguments.read(op.schema->inputs, values.from(3));
  arguments.read_options(values.from(3 + num_inputs));
  std::vector<ImplementationReport> reports;
  throw_unless_ok(op.explain(arguments.get(), context, &reports));
  return json_array(reports, [](const ImplementationReport& report) {
    return "{\"name\":" + json_string(report.name) + ",\"refusal\":" + json_string(report.refusal) +
           ",\"plan\":" + json_string(report.plan) +
           ",\"selected\":" + (report.selected ? "true" : "false") + "}";
  });
}

/// A function of Python from one of those above.
template <auto kFunction>
ffi::Function function_of(const OpEntry& op) {
  return ffi::Function::FromPacked(
      [&op](const ffi::AnyView* values, std::int32_t num_values, ffi::Any* result) {
        const Values all(values, static_cast<std::size_t>(num_values));
        if constexpr (std::is_void_v<decltype(kFunction(op, all))>) {
          kFunction(op, all);
        } else {
          *result = kFunction(op, all);
        }
      });
}

ffi::Function op_function(const ffi::String& op, const ffi::String& function) {
  const std::string name = function;
  if (name == "call") return function_of<call>(op_named(op));
  if (name == "call_plain") return function_of<call_plain>(op_named(op));
  if (name == "call_joined") return function_of<call_joined>(op_named(op));
  if (name == "call_joined_plain") return function_of<call_joined_plain>(op_named(op));
  if (name == "sizes") return function_of<sizes>(op_named(op));
  if (name == "explain") return function_of<explain>(op_named(op));
  TVM_FFI_THROW(ValueError) << "no function of an op is named '" << name << "'";
  TVM_FFI_UNREACHABLE();
}

std::string length_json(const Length& length) {
  constexpr const char* kBounds[] = {"exactly", "at least", "gives"};
  return "{\"bound\":" + json_string(kBounds[static_cast<int>(length.bound)]) +
         ",\"symbol\":" + (length.symbol < 0 ? "null" : std::to_string(length.symbol)) +
         ",\"constant\":" + std::to_string(length.constant) + "}";
}

std::string dtypes_json(DtypeSet set) {
  std::vector<std::string> names;
  for (int i = 0; i < dtypes::kNumDtypes; ++i) {
    if ((set >> i & 1) != 0) names.push_back(dtypes::kAll[i].name);
  }
  return json_array(names, json_string);
}

std::string argument_json(const Argument& argument, const OpEntry& op) {
  constexpr const char* kKinds[] = {"array", "int64", "int32", "flag", "float32"};
  constexpr const char* kRoles[] = {"input", "optional_input", "output", "optional_output"};
  std::string json = "{\"name\":" + json_string(argument.name) +
                     ",\"kind\":" + json_string(kKinds[static_cast<int>(argument.kind)]);
  if (!argument.is_array()) {
    return json + ",\"low\":" + std::to_string(argument.low) +
           ",\"high\":" + std::to_string(argument.high) +
           ",\"default\":" + number_json(argument, op.default_args) +
           ",\"choices\":" + json_array(argument.choices, json_string) +
           ",\"symbol\":" + (argument.symbol < 0 ? "null" : std::to_string(argument.symbol)) +
           ",\"row_length_of\":" +
           (argument.row_length_of < 0
                ? "null"
                : json_string(op.schema->arguments[argument.row_length_of].name)) +
           "}";
  }
  const int ndim = argument.extents.ndim;
  const std::span<const Length> lengths(argument.extents.lengths, ndim == 0 ? 1 : ndim);
  return json + ",\"role\":" + json_string(kRoles[static_cast<int>(argument.role)]) +
         ",\"ndim\":" + std::to_string(ndim) + ",\"dtypes\":" + dtypes_json(argument.dtypes) +
         ",\"other_dtypes\":" + dtypes_json(argument.other_dtypes) +
         ",\"made_as\":" + dtypes_json(argument.made_as) + ",\"same_dtype_as\":" +
         (argument.same_dtype_as < 0
              ? "null"
              : json_string(op.schema->arguments[argument.same_dtype_as].name)) +
         ",\"lengths\":" + json_array(lengths, length_json) + "}";
}

/// The tables of all ops.
std::string schemas() {
  return json_array(all_ops(), [](const OpEntry& op) {
    return "{\"op\":" + json_string(std::string(op.schema->op)) +
           ",\"symbols\":" + json_array(op.schema->symbols, json_string) + ",\"arguments\":" +
           json_array(op.schema->arguments,
                      [&](const Argument& argument) { return argument_json(argument, op); }) +
           "}";
  });
}

std::string backends() {
  return json_array(tessera::backends(), [](const BackendInfo& backend) {
    return "{\"name\":" + json_string(backend.name) +
           ",\"available\":" + (backend.available ? "true" : "false") +
           ",\"detail\":" + json_string(backend.detail) + "}";
  });
}

void warmup(std::int64_t device_type, std::int64_t device_id) {
  throw_unless_ok(tessera::warmup(
      {static_cast<DLDeviceType>(device_type), int32_of("warmup", "device", device_id)}));
}

std::string validate_default() { return tessera::validate_default(); }
std::string version() { return tessera::version(); }
std::string build() { return tessera::build_description(); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_function, op_function)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(schemas, schemas)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(backends, backends)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(warmup, warmup)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(validate_default, validate_default)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(version, version)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(build, build)

}  // namespace tessera::python
