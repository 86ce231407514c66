// quantize_fp8: its sizes, and its arguments as implementations take them.
#include "tessera/quantize_fp8.hpp"

#include <array>
#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/op.hpp"
#include "core/quantize_fp8_problem.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::QuantizeFp8Problem;
using core::Validator;
using namespace quantize_fp8_schema;

constexpr core::OutOfMemory kOutOfMemory("quantize_fp8");

QuantizeFp8Problem make_problem(const QuantizeFp8Args& args, const std::int64_t* symbols) {
  QuantizeFp8Problem problem{};
  problem.x = args.x.data;
  problem.scale = static_cast<const float*>(args.scale.data);
  problem.values = static_cast<std::uint8_t*>(args.values.data);
  problem.scales = static_cast<float*>(args.scales.data);
  problem.dtype = args.x.dtype;
  problem.group = args.group;
  problem.use_ue8m0 = args.use_ue8m0;
  problem.num_tokens = symbols[kNumTokens];
  problem.hidden_size = symbols[kHiddenSize];
  problem.x_stride = core::stride_of(args.x, 0);
  problem.values_stride = core::stride_of(args.values, 0);
  return problem;
}

bool sizes(const QuantizeFp8Args& args, std::int64_t* symbols, Validator* check) {
  if (args.use_ue8m0 && args.scale.given()) {
    return check->fail(StatusCode::kInvalidValue, "use_ue8m0", "false where scale is given",
                       "true");
  }
  symbols[kNumScales] = make_problem(args, symbols).num_scales();
  return true;
}

/// The table compares numbers of elements alone, and scales of transposed weights have as many. An
/// array of one axis holds the scales in row-major order.
bool good_shape(const char* name, const TensorView& view, const std::array<std::int64_t, 2>& shape,
                Validator* check) {
  if (!view.given() || view.ndim == 1) return true;
  if (view.ndim == 2 && view.shape[0] == shape[0] && view.shape[1] == shape[1]) return true;
  const auto text_of = [](const std::int64_t* lengths, int count) {
    std::string text = "[";
    for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(lengths[i]);
    return text + "]";
  };
  return check->fail(
      StatusCode::kInvalidValue, std::string(name) + ".shape", text_of(shape.data(), 2),
      view.ndim > kMaxAxes ? std::to_string(view.ndim) + " axes" : text_of(view.shape, view.ndim));
}

bool rules(const QuantizeFp8Args& args, const std::int64_t* symbols, Validator* check) {
  const QuantizeFp8Problem problem = make_problem(args, symbols);
  if (problem.group == Fp8Group::kTensor) return true;
  const std::array<std::int64_t, 2> shape{problem.grid_rows(), problem.grid_columns()};
  return good_shape("scale", args.scale, shape, check) &&
         good_shape("scales", args.scales, shape, check);
}

std::string describe(const QuantizeFp8Problem& problem) {
  return std::to_string(problem.num_tokens) + " tokens, hidden size " +
         std::to_string(problem.hidden_size) + ", " + core::to_string(problem.dtype) + ", group " +
         kFp8GroupNames[static_cast<std::size_t>(problem.group)] +
         (problem.scale != nullptr ? ", scale given"
          : problem.use_ue8m0      ? ", ue8m0"
                                   : "");
}

constexpr core::Op kOp =
    core::make_op<QuantizeFp8Args, QuantizeFp8Problem, sizes, make_problem, describe, rules>(
        kQuantizeFp8Schema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kQuantizeFp8 = core::make_entry<QuantizeFp8Args, kOp>();

Status quantize_fp8_workspace_bytes(const QuantizeFp8Args& args, const Context& context,
                                    std::size_t* bytes) {
  OpSizes found;
  Status status = core::sizes(kOp, &args, context, &found);
  if (status.ok()) *bytes = found.workspace_bytes;
  return status;
}

Status quantize_fp8(const QuantizeFp8Args& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
