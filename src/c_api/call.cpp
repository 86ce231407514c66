// tessera_query and tessera_call: any op, its arguments found by name in its table.
#include <algorithm>
#include <bit>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "c_api/conversions.hpp"
#include "tessera/fused_experts.hpp"
#include "tessera/ops.hpp"
#include "tessera/select_experts.hpp"

namespace {

using namespace tessera;
using namespace tessera::c_api;

static_assert(TESSERA_MAX_AXES == kMaxAxes);
static_assert(TESSERA_RELU2_NO_MUL == static_cast<int>(Activation::kRelu2NoMul) &&
                  TESSERA_RELU2_NO_MUL + 1 == std::size(kActivationNames),
              "a tessera_activation is an Activation");
static_assert(TESSERA_SCORING_SQRT_SOFTPLUS == static_cast<int>(Scoring::kSqrtSoftplus) &&
                  TESSERA_SCORING_SQRT_SOFTPLUS + 1 == std::size(kScoringNames),
              "a tessera_scoring is a Scoring");
static_assert(dtypes::kInt64 == 1 << TESSERA_INT64 && dtypes::kFloat16 == 1 << TESSERA_FLOAT16 &&
                  dtypes::kBfloat16 == 1 << TESSERA_BFLOAT16 &&
                  dtypes::kFloat32 == 1 << TESSERA_FLOAT32 &&
                  dtypes::kFloat64 == 1 << TESSERA_FLOAT64 &&
                  dtypes::kFloat8E4m3 == 1 << TESSERA_FLOAT8_E4M3FN,
              "a tessera_dtype is an index into dtypes::kAll");

std::string_view name_of(const OpEntry& op) { return op.schema->op; }
std::string_view name_of(const Argument& argument) { return argument.name; }

template <typename Row>
std::string names_of(std::span<const Row> rows) {
  std::vector<std::string_view> names;
  for (const Row& row : rows) names.push_back(name_of(row));
  return core::alternatives(names);
}

/// The op that the arguments name; null where there is none, which a Call refuses.
const OpEntry* op_of(const tessera_call_args* args) noexcept {
  const bool has_name =
      args != nullptr && args->struct_size == sizeof(*args) && args->op != nullptr;
  return has_name ? find_op(args->op) : nullptr;
}

/// Why op_of() has found none.
Status refuse_op(const char* function, const tessera_call_args* args) {
  if (Status s = check_struct(function, "args", args); !s.ok()) return s;
  return wrong_value(function, "op", names_of(all_ops()), args->op == nullptr ? "NULL" : args->op);
}

const Argument* find_argument(const OpEntry& op, std::string_view name) {
  for (const Argument& argument : op.schema->arguments) {
    if (name_of(argument) == name) return &argument;
  }
  return nullptr;
}

bool has_array(const tessera_argument& argument) {
  return argument.data != nullptr || argument.ndim != 0;
}

/// What the arguments say, as the op takes it.
class Call {
 public:
  explicit Call(const OpEntry& op) : op_(op) {
    std::memcpy(memory_, op.default_args, op.args_bytes);
  }

  /// With `outputs`; a query does not read them.
  Status read(const tessera_call_args& args, bool outputs) {
    if (Status s = make_context(name_of(op_), args, &context); !s.ok()) return s;
    context.num_threads = args.num_threads;
    if (args.implementation != nullptr) context.implementation = args.implementation;
    if (args.arguments == nullptr && args.num_arguments != 0) {
      return wrong_value(name_of(op_), "arguments", "a pointer", "NULL");
    }
    std::bitset<kMaxArgsBytes> is_given;  // by offset
    for (std::size_t i = 0; i < args.num_arguments; ++i) {
      const tessera_argument& given = args.arguments[i];
      const Argument* const row = given.name == nullptr ? nullptr : find_argument(op_, given.name);
      if (row == nullptr || is_given[row->offset]) {
        return wrong_value(name_of(op_), "arguments[" + std::to_string(i) + "].name",
                           row == nullptr ? names_of(op_.schema->arguments) : "each name once",
                           given.name == nullptr ? "NULL" : given.name);
      }
      is_given[row->offset] = true;
      if (row->is_output() && !outputs) continue;
      if (Status s = row->is_array() ? read_array(*row, given) : read_number(*row, given);
          !s.ok()) {
        return s;
      }
    }
    return {};
  }

  const void* args() const { return memory_; }

  Context context;

 private:
  Status read_array(const Argument& row, const tessera_argument& given) {
    if (given.value != 0 || given.real != 0) {
      return core::refuse(StatusCode::kInvalidType, name_of(op_), row.name, "an array", "a number");
    }
    if (!has_array(given)) return {};
    if (given.dtype < 0 || given.dtype >= dtypes::kNumDtypes) {
      return core::refuse(StatusCode::kInvalidType, name_of(op_), std::string(row.name) + ".dtype",
                          "a tessera_dtype", std::to_string(given.dtype));
    }
    if (given.ndim < 0 || given.ndim > TESSERA_MAX_AXES) {
      return wrong_value(name_of(op_), std::string(row.name) + ".ndim",
                         "an integer in [0, " + std::to_string(TESSERA_MAX_AXES) + "]",
                         std::to_string(given.ndim));
    }
    const bool is_strided = std::ranges::any_of(std::span(given.strides).first(given.ndim),
                                                [](std::int64_t stride) { return stride != 0; });
    DLTensor tensor{};
    tensor.data = given.data;
    tensor.device = context.device;
    tensor.ndim = given.ndim;
    tensor.dtype = dtypes::kAll[given.dtype].dtype;
    // Only read, as all of a DLTensor is here.
    tensor.shape = const_cast<std::int64_t*>(given.shape);
    tensor.strides = is_strided ? const_cast<std::int64_t*>(given.strides) : nullptr;
    view_in(memory_, row) = TensorView::of(tensor);
    return {};
  }

  Status read_number(const Argument& row, const tessera_argument& given) {
    if (has_array(given)) {
      return core::refuse(StatusCode::kInvalidType, name_of(op_), row.name, "a number", "an array");
    }
    const bool is_real = row.kind == Argument::Kind::kFloat32;
    if (is_real ? given.value != 0 : given.real != 0) {
      return core::refuse(StatusCode::kInvalidType, name_of(op_), row.name,
                          is_real ? "a number in real" : "a number in value",
                          is_real ? "one in value" : "one in real");
    }
    if (is_real) {
      set_number(memory_, row, std::bit_cast<std::int32_t>(static_cast<float>(given.real)));
      return {};
    }
    if (row.kind == Argument::Kind::kInt32 &&
        given.value != static_cast<std::int32_t>(given.value)) {
      return wrong_value(name_of(op_), row.name, "an integer of 32 bits",
                         std::to_string(given.value));
    }
    set_number(memory_, row, given.value);
    return {};
  }

  const OpEntry& op_;
  alignas(std::max_align_t) std::byte memory_[kMaxArgsBytes];
};

/// The data type of an output and the smallest shape that it may have.
void write_output(const OpEntry& op, const Argument& row, const void* args, const OpSizes& sizes,
                  tessera_argument* output) {
  DLDataType dtype = row.first_dtype;
  if (row.same_dtype_as >= 0) {
    dtype = view_in(args, op.schema->arguments[row.same_dtype_as]).dtype;
  }
  const DtypeSet shared = dtypes::set_of(dtype) & row.dtypes;
  output->dtype = std::countr_zero(shared != 0 ? shared : row.made_as);
  output->ndim = std::max<int>(1, row.extents.ndim);
  for (int axis = 0; axis < TESSERA_MAX_AXES; ++axis) {
    const Length& length = row.extents.lengths[axis];
    output->shape[axis] = length.symbol < 0 ? length.constant : sizes.symbols[length.symbol];
    output->strides[axis] = 0;
  }
}

Status query(const OpEntry& op, tessera_call_args* args) {
  Call call(op);
  if (Status s = call.read(*args, /*outputs=*/false); !s.ok()) return s;
  OpSizes sizes;
  if (Status s = op.sizes(call.args(), call.context, &sizes); !s.ok()) return s;
  args->workspace_bytes = sizes.workspace_bytes;
  for (tessera_argument& argument : std::span(args->arguments, args->num_arguments)) {
    const Argument& row = *find_argument(op, argument.name);
    if (row.is_output()) write_output(op, row, call.args(), sizes, &argument);
  }
  return {};
}

Status run(const OpEntry& op, const tessera_call_args& args) {
  Call call(op);
  if (Status s = call.read(args, /*outputs=*/true); !s.ok()) return s;
  return op.call(call.args(), call.context);
}

}  // namespace

extern "C" {

tessera_status tessera_query(tessera_call_args* args) {
  static constexpr core::OutOfMemory kOutOfMemory("query");
  const OpEntry* const op = op_of(args);
  return finish(op == nullptr ? kOutOfMemory.error() : op->out_of_memory,
                [&] { return op == nullptr ? refuse_op("query", args) : query(*op, args); });
}

tessera_status tessera_call(const tessera_call_args* args) {
  static constexpr core::OutOfMemory kOutOfMemory("call");
  const OpEntry* const op = op_of(args);
  return finish(op == nullptr ? kOutOfMemory.error() : op->out_of_memory,
                [&] { return op == nullptr ? refuse_op("call", args) : run(*op, *args); });
}

}  // extern "C"
