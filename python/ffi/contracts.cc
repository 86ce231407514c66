// Python's exports of the contracts: checkers, rules, cases and their inputs.
#include "contracts.hpp"

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "conversions.hpp"
#include "fused_experts_checker.hpp"

namespace tessera::python {
namespace {

std::string violations_json(const std::vector<contract::Violation>& violations) {
  return json_array(violations, [](const contract::Violation& violation) {
    return "{\"rule\":" + json_string(violation.rule) +
           ",\"array\":" + json_string(violation.array) +
           ",\"position\":" + std::to_string(violation.position) +
           ",\"expected\":" + violation.expected.text() + ",\"found\":" + violation.found.text() +
           ",\"message\":" + json_string(violation.message) + "}";
  });
}

/// Bytes from the first element to past the last.
std::size_t bytes_spanned(const TensorView& view) {
  std::int64_t elements = view.num_elements == 0 ? 0 : 1;
  for (int i = 0; i < view.ndim && elements != 0; ++i) {
    elements += (view.shape[i] - 1) * view.strides[i];
  }
  return static_cast<std::size_t>(elements) * view.dtype.bits / 8;
}

void copy_to(ffi::AnyView out, const void* source, std::size_t bytes) {
  const std::span<std::byte> memory = bytes_of(out);
  if (memory.size() != bytes) {
    TVM_FFI_THROW(ValueError) << "expected an array of " << bytes << " bytes";
  }
  if (bytes != 0) std::memcpy(memory.data(), source, bytes);
}

const contract::OpContract& contract_of(const ffi::String& op) {
  const contract::OpContract* found = contract::find_contract(std::string(op));
  if (found == nullptr) TVM_FFI_THROW(ValueError) << "no op is named '" << std::string(op) << "'";
  return *found;
}

std::string op_rules(const ffi::String& op) {
  return json_array(contract_of(op).rules, [](const contract::Rule& rule) {
    return "{\"name\":" + json_string(rule.name) + ",\"meaning\":" + json_string(rule.meaning) +
           "}";
  });
}

/// Whether all correct outputs of an op are the same to the last bit.
bool op_fixes_bits(const ffi::String& op) { return contract_of(op).fixes_bits; }

/// The arguments of a finished call. `values` are the type of the device on which it ran, and then
/// those of the op's table, in its order, with arrays in host memory.
Arguments arguments_of_call(const OpEntry& op, const ffi::AnyView* values,
                            std::int32_t num_values) {
  const Values all(values, static_cast<std::size_t>(num_values));
  Arguments arguments(op);
  arguments.read(all.from(1));
  const auto ran_on = static_cast<DLDeviceType>(integer_of(all[0]));
  for (const Argument& argument : op.schema->arguments) {
    if (argument.is_output()) arguments.view(argument).device.device_type = ran_on;
  }
  return arguments;
}

/// Judges calls of an op.
ffi::Function op_checker(const ffi::String& name) {
  return ffi::Function::FromPacked(
      [&op = op_named(name), &judge = contract_of(name)](
          const ffi::AnyView* values, std::int32_t num_values, ffi::Any* result) {
        *result = violations_json(judge.check(arguments_of_call(op, values, num_values).get()));
      });
}

/// How much of its error bound an output of fused_experts uses. The call has to have valid inputs
/// and an output of the right size.
ffi::Function fused_experts_bound_used() {
  return ffi::Function::FromPacked([&op = op_named("fused_experts")](const ffi::AnyView* values,
                                                                     std::int32_t num_values,
                                                                     ffi::Any* result) {
    const Arguments call = arguments_of_call(op, values, num_values);
    *result = contract::fused_experts_bound_used(*static_cast<const FusedExpertsArgs*>(call.get()));
  });
}

std::string op_case_names(const ffi::String& op) {
  return json_array(contract_of(op).case_names(), json_string);
}

contract::CaseArguments case_arguments(const ffi::String& op, const ffi::String& name,
                                       std::int64_t seed) {
  contract::CaseArguments found =
      contract_of(op).arguments(std::string(name), static_cast<std::uint64_t>(seed));
  if (found.args == nullptr) {
    std::string others;
    for (const auto& known : contract_of(op).case_names()) {
      others.append(others.empty() ? "" : ", ").append(known);
    }
    TVM_FFI_THROW(ValueError) << std::string(op) << ": no case is named '" << std::string(name)
                              << "'; random ones are named random:SEED:SIZE, the others " << others;
  }
  return found;
}

std::string argument_json(const Argument& argument, const void* args) {
  if (!argument.is_array()) return number_json(argument, args);
  const TensorView& view = view_in(args, argument);
  if (!view.given()) return "null";
  const std::span<const std::int64_t> shape(view.shape, view.ndim);
  const std::span<const std::int64_t> strides(view.strides, view.ndim);
  const auto text = [](std::int64_t extent) { return std::to_string(extent); };
  const int dtype = std::countr_zero(dtypes::set_of(view.dtype));
  return "{\"dtype\":" + json_string(dtypes::kAll[dtype].name) +
         ",\"shape\":" + json_array(shape, text) + ",\"strides\":" + json_array(strides, text) +
         "}";
}

/// The arguments of a case in the order of the table: numbers and flags, and of arrays the dtype,
/// shape and strides, or null where one is not given.
std::string op_case(const ffi::String& op, const ffi::String& name, std::int64_t seed) {
  const contract::CaseArguments found = case_arguments(op, name, seed);
  return json_array(op_named(op).schema->arguments, [&](const Argument& argument) {
    return argument_json(argument, found.args.get());
  });
}

/// Copies the inputs of a case into the arrays, one for each input in the order of the table, None
/// where the case has none.
ffi::Function op_case_inputs(const ffi::String& op, const ffi::String& name, std::int64_t seed) {
  return ffi::Function::FromPacked(
      [&schema = *op_named(op).schema, found = case_arguments(op, name, seed)](
          const ffi::AnyView* values, std::int32_t num_values, ffi::Any*) {
        std::int32_t i = 0;
        for (const Argument& argument : schema.arguments) {
          if (!argument.is_array() || argument.is_output() || i == num_values) continue;
          const ffi::AnyView value = values[i++];
          if (value == nullptr) continue;
          const TensorView& view = view_in(found.args.get(), argument);
          copy_to(value, view.data, bytes_spanned(view));
        }
      });
}

/// The same memory with elements of another data type of the same width: NumPy, which has no
/// bfloat16, holds its bits as uint16.
ffi::Tensor with_dtype(const ffi::Tensor& array, const ffi::String& name) {
  const DLDataType dtype = dtype_named(name);
  if (dtype.bits != array.dtype().bits) {
    TVM_FFI_THROW(ValueError) << "expected elements of " << int{dtype.bits} << " bits, got "
                              << int{array.dtype().bits};
  }
  DLManagedTensor* const view = array.ToDLPack();
  view->dl_tensor.dtype = dtype;
  return ffi::Tensor::FromDLPack(view);
}

contract::AlignBlockSizeCase case_named(const ffi::String& name) {
  auto found = contract::find_case(std::string(name));
  if (!found) {
    TVM_FFI_THROW(ValueError) << "no case is named '" << std::string(name)
                              << "'; random ones are named random:SEED:MAX_IDS";
  }
  return *std::move(found);
}

std::string align_block_size_case(const ffi::String& name) {
  return contract::to_json(case_named(name));
}

/// Ids of a shape that is not in the table: int32[num_tokens, top_k].
void align_block_size_synthetic_ids(std::int64_t num_tokens, std::int64_t num_experts,
                                    std::int64_t top_k, bool zipf, std::int64_t seed,
                                    const ffi::TensorView& topk_ids) {
  contract::AlignBlockSizeCase c;
  c.num_tokens = num_tokens;
  c.num_experts = num_experts;
  c.top_k = top_k;
  c.distribution = zipf ? contract::IdDistribution::kZipf : contract::IdDistribution::kUniform;
  const auto inputs = contract::make_inputs(c, static_cast<std::uint64_t>(seed));
  copy_to(topk_ids, inputs.topk_ids.data(), inputs.topk_ids.size());
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_rules, op_rules)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_fixes_bits, op_fixes_bits)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_checker, op_checker)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(fused_experts_bound_used, fused_experts_bound_used)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_case_names, op_case_names)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_case, op_case)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(op_case_inputs, op_case_inputs)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(with_dtype, with_dtype)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_cases, contract::align_block_size_cases_json)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_case, align_block_size_case)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_synthetic_ids, align_block_size_synthetic_ids)

}  // namespace tessera::python
