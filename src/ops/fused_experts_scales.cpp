#include "ops/fused_experts_scales.hpp"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "core/errors.hpp"

namespace tessera::ops {
namespace {

using core::ExpertScales;
using core::num_scale_blocks;
using core::Validator;
using core::WeightScales;
using namespace fused_experts_schema;

using Shape = std::vector<std::int64_t>;

/// Whether gate rows and then up rows follow each other in w13.
bool has_halves(const FusedExpertsArgs& args) {
  return has_gate(args.activation) && args.activation != Activation::kSwigluoai;
}

/// The shapes that scales of w13 may have, in the order of WeightScales, from kPerExpert on.
std::vector<Shape> shapes_of_w13_scale(const FusedExpertsArgs& args, const std::int64_t* symbols) {
  const std::int64_t experts = symbols[kNumExperts];
  const std::int64_t rows = symbols[kNumRows];
  const std::int64_t blocks =
      has_halves(args) ? 2 * num_scale_blocks(symbols[kIntermediateSize]) : num_scale_blocks(rows);
  return {{experts}, {experts, rows, 1}, {experts, blocks, num_scale_blocks(symbols[kHiddenSize])}};
}

std::vector<Shape> shapes_of_w2_scale(const std::int64_t* symbols) {
  const std::int64_t experts = symbols[kNumExperts];
  const std::int64_t hidden = symbols[kHiddenSize];
  return {{experts},
          {experts, hidden, 1},
          {experts, num_scale_blocks(hidden), num_scale_blocks(symbols[kIntermediateSize])}};
}

bool has_shape(const TensorView& view, const Shape& shape) {
  return view.ndim == static_cast<std::int32_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), view.shape);
}

/// One number, also without an axis.
bool is_single(const TensorView& view) {
  return view.ndim == 0 || (view.ndim == 1 && view.shape[0] == 1);
}

/// The number of scales, which the table compares with that of the array's elements.
std::int64_t num_scales(const TensorView& view) {
  std::int64_t count = 1;
  for (int i = 0; i < std::min(view.ndim, kMaxAxes); ++i) {
    if (__builtin_mul_overflow(count, view.shape[i], &count)) return -1;
  }
  return count;
}

WeightScales kind_of(const FusedExpertsArgs& args, const std::int64_t* symbols) {
  if (!is_fp8(args.w13.dtype)) return WeightScales::kNone;
  const std::vector<Shape> w13 = shapes_of_w13_scale(args, symbols);
  if (has_shape(args.w13_scale, w13[0])) return WeightScales::kPerExpert;
  if (!has_shape(args.w13_scale, w13[1])) return WeightScales::kPerBlock;
  // A block may be one row.
  const bool are_blocks =
      w13[1] == w13[2] && !has_shape(args.w2_scale, shapes_of_w2_scale(symbols)[1]);
  return are_blocks ? WeightScales::kPerBlock : WeightScales::kPerRow;
}

ExpertScales scales_of(const TensorView& view, WeightScales kind, std::int64_t num_rows,
                       std::int64_t half_rows, std::int64_t num_columns) {
  if (kind == WeightScales::kNone) return {};
  ExpertScales scales{static_cast<const float*>(view.data), kind, 1, 1, half_rows};
  if (kind == WeightScales::kPerRow) scales.expert_stride = num_rows;
  if (kind == WeightScales::kPerBlock) {
    scales.num_columns = num_scale_blocks(num_columns);
    const std::int64_t block_rows =
        num_scale_blocks(half_rows) + num_scale_blocks(num_rows - half_rows);
    scales.expert_stride = block_rows * scales.num_columns;
  }
  return scales;
}

std::string text_of(const std::int64_t* lengths, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(lengths[i]);
  return text + "]";
}

std::string text_of(const Shape& shape) {
  return text_of(shape.data(), static_cast<int>(shape.size()));
}

std::string shape_text(const TensorView& view) {
  const bool has_lengths = view.ndim >= 0 && view.ndim <= kMaxAxes;
  return has_lengths ? text_of(view.shape, view.ndim) : std::to_string(view.ndim) + " axes";
}

/// What scales belong to, in the order of WeightScales, from kPerExpert on.
constexpr const char* kWhose[] = {"per expert", "per row", "of blocks"};

std::string alternatives(const std::vector<std::string>& texts) {
  return core::alternatives(std::vector<std::string_view>(texts.begin(), texts.end()));
}

/// Which kind of scales is meant by a shape that none has; kNone if it does not show.
WeightScales meant_by(const TensorView& view, const std::vector<Shape>& shapes) {
  if (view.ndim == 1) return WeightScales::kPerExpert;
  const bool may_be_single = view.ndim == 3 && view.shape[1] == 1 && view.shape[2] == 1;
  if (view.ndim != 3 || may_be_single) return WeightScales::kNone;
  // There are 128 times as many rows as rows of blocks; 11 is the geometric mean of 1 and 128.
  return view.shape[1] > 11 * shapes[2][1] ? WeightScales::kPerRow : WeightScales::kPerBlock;
}

/// The expected shape for an error message about scales of a wrong shape. If the shape resembles
/// that of one kind of scales, the message names that kind's shape, else the shapes of all kinds.
std::string expected_for(const TensorView& view, const std::vector<Shape>& shapes) {
  const WeightScales kind = meant_by(view, shapes);
  if (kind != WeightScales::kNone) {
    const auto index = static_cast<std::size_t>(kind) - 1;
    return text_of(shapes[index]) + " for scales " + kWhose[index];
  }
  std::vector<std::string> texts;
  texts.reserve(shapes.size());
  for (const Shape& shape : shapes) texts.push_back(text_of(shape) + " " + kWhose[texts.size()]);
  return alternatives(texts);
}

class ScaleRules {
 public:
  ScaleRules(const FusedExpertsArgs& args, const std::int64_t* symbols, Validator* check)
      : args_(args), symbols_(symbols), kind_(kind_of(args, symbols)), check_(*check) {}

  bool has_good_shapes() {
    return kind_ == WeightScales::kNone ||
           (good_weight_shapes() && good_x_shape() && good_intermediate_shape());
  }

  bool has_right_ones() {
    if (kind_ == WeightScales::kNone) return are_absent();
    return is_given("w13_scale", args_.w13_scale, " where w13 is float8_e4m3fn") &&
           is_given("w2_scale", args_.w2_scale, " where w2 is float8_e4m3fn") && right_x() &&
           right_intermediate() && right_rest();
  }

 private:
  bool fail(const std::string& name, const std::string& expected, const std::string& got) {
    return check_.fail(StatusCode::kInvalidValue, name, expected, got);
  }

  bool is_absent(const char* name, const TensorView& view, const char* where) {
    return !view.given() ||
           fail(name, std::string("none") + where, "one of shape " + shape_text(view));
  }

  bool is_given(const char* name, const TensorView& view, const char* where) {
    return view.given() || fail(name, std::string("a float32 array") + where, "none");
  }

  bool has_blocks() const { return kind_ == WeightScales::kPerBlock; }

  bool good_weight_shapes() {
    const std::vector<Shape> w13 = shapes_of_w13_scale(args_, symbols_);
    const std::vector<Shape> w2 = shapes_of_w2_scale(symbols_);
    const auto index = static_cast<std::size_t>(kind_) - 1;
    if (args_.w13_scale.given() && !has_shape(args_.w13_scale, w13[index])) {
      return fail("w13_scale.shape", expected_for(args_.w13_scale, w13),
                  shape_text(args_.w13_scale));
    }
    // Without those of w13 there is nothing to compare with.
    return !args_.w2_scale.given() || !args_.w13_scale.given() ||
           has_shape(args_.w2_scale, w2[index]) ||
           fail("w2_scale.shape", text_of(w2[index]) + ", as w13 has scales " + kWhose[index],
                shape_text(args_.w2_scale));
  }

  bool good_x_shape() {
    const TensorView& scale = args_.x_scale;
    if (!scale.given()) return true;
    const std::int64_t tokens = symbols_[kNumTokens];
    if (!is_fp8(args_.x.dtype)) {
      return has_blocks() || is_single(scale) ||
             fail("x_scale.shape", "[1] where x is not float8_e4m3fn", shape_text(scale));
    }
    if (has_blocks()) {
      const Shape shape{tokens, num_scale_blocks(symbols_[kHiddenSize])};
      return has_shape(scale, shape) || fail("x_scale.shape", text_of(shape), shape_text(scale));
    }
    return is_single(scale) || has_shape(scale, {tokens, 1}) ||
           fail("x_scale.shape", alternatives({"[1]", text_of({tokens, 1})}), shape_text(scale));
  }

  bool good_intermediate_shape() {
    const TensorView& scale = args_.intermediate_scale;
    return !scale.given() || is_single(scale) ||
           fail("intermediate_scale.shape", "[1]", shape_text(scale));
  }

  bool are_absent() {
    constexpr const char* kWhere = " where w13 is not float8_e4m3fn";
    return is_absent("w13_scale", args_.w13_scale, kWhere) &&
           is_absent("w2_scale", args_.w2_scale, kWhere) &&
           is_absent("x_scale", args_.x_scale, kWhere) &&
           is_absent("intermediate_scale", args_.intermediate_scale, kWhere) &&
           (!args_.use_ue8m0 || fail("use_ue8m0", std::string("false") + kWhere, "true"));
  }

  bool right_x() {
    if (is_fp8(args_.x.dtype)) {
      return is_given("x_scale", args_.x_scale, " where x is float8_e4m3fn");
    }
    return !has_blocks() ||
           is_absent("x_scale", args_.x_scale,
                     " where x is not float8_e4m3fn and weights have scales of blocks");
  }

  bool right_intermediate() {
    const char* const name = "intermediate_scale";
    const TensorView& scale = args_.intermediate_scale;
    if (has_blocks()) return is_absent(name, scale, " where weights have scales of blocks");
    if (!args_.x_scale.given()) {  // as x is not float8_e4m3fn
      return !scale.given() ||
             is_given("x_scale", args_.x_scale, " where intermediate_scale is given");
    }
    if (!is_single(args_.x_scale)) {
      return is_absent(name, scale, " where x_scale is not [1]");
    }
    return is_fp8(args_.x.dtype) || is_given(name, scale, " where x_scale is given");
  }

  bool right_rest() {
    if (args_.use_ue8m0 && args_.intermediate_scale.given()) {
      return fail("use_ue8m0", "false where all scales are given", "true");
    }
    // Where x has their data type, the table compares them with that.
    return has_dtype_of_output("w13_bias", args_.w13_bias) &&
           has_dtype_of_output("w2_bias", args_.w2_bias);
  }

  bool has_dtype_of_output(const char* name, const TensorView& bias) {
    return !bias.given() || dtypes::set_of(bias.dtype) == dtypes::set_of(args_.output.dtype) ||
           check_.fail(StatusCode::kInvalidType, std::string(name) + ".dtype",
                       core::to_string(args_.output.dtype) + ", as output has",
                       core::to_string(bias.dtype));
  }

  const FusedExpertsArgs& args_;
  const std::int64_t* symbols_;
  const WeightScales kind_;
  Validator& check_;
};

}  // namespace

bool good_scale_shapes(const FusedExpertsArgs& args, std::int64_t* symbols, Validator* check) {
  symbols[kNumW13Scales] = num_scales(args.w13_scale);
  symbols[kNumW2Scales] = num_scales(args.w2_scale);
  symbols[kNumXScales] = num_scales(args.x_scale);
  return ScaleRules(args, symbols, check).has_good_shapes();
}

bool good_scales(const FusedExpertsArgs& args, const std::int64_t* symbols, Validator* check) {
  return ScaleRules(args, symbols, check).has_right_ones();
}

ExpertScales scales_of_w13(const FusedExpertsArgs& args, const std::int64_t* symbols) {
  const std::int64_t rows = symbols[kNumRows];
  return scales_of(args.w13_scale, kind_of(args, symbols), rows,
                   has_halves(args) ? symbols[kIntermediateSize] : rows, symbols[kHiddenSize]);
}

ExpertScales scales_of_w2(const FusedExpertsArgs& args, const std::int64_t* symbols) {
  const std::int64_t rows = symbols[kHiddenSize];
  return scales_of(args.w2_scale, kind_of(args, symbols), rows, rows, symbols[kIntermediateSize]);
}

}  // namespace tessera::ops
