#include "moe_unpermute_checker.hpp"

#include "arrays.hpp"
#include "float_bits.hpp"
#include "weighted_sum.hpp"

namespace tessera::contract {
namespace {

class Checker : private SumChecker {
 public:
  explicit Checker(const MoeUnpermuteArgs& args)
      : args_(args),
        num_rows_(args.rows.shape[0]),
        hidden_size_(args.rows.shape[1]),
        num_tokens_(args.inverse.shape[0]),
        top_k_(args.inverse.shape[1]) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_rows("output", args_.output, args_.rows.dtype, num_tokens_, hidden_size_);
    if (none()) check_elements();
    return in_order(kMoeUnpermuteRules);
  }

 private:
  void check_inputs() {
    const TensorView& rows = args_.rows;
    if (!is_float(rows.dtype) || !has_rows(rows, 2)) {
      invalid_input("rows", "[M, H] float16, bfloat16 or float32 values in contiguous rows",
                    describe_axes(rows));
    }
    const TensorView& inverse = args_.inverse;
    if (!same(inverse.dtype, kInt32) || !has_rows(inverse, 2) || !inverse.contiguous) {
      invalid_input("inverse", "[T, k] contiguous int32 values", describe_axes(inverse));
    } else if (top_k_ == 0) {
      invalid_input("inverse", "at least one slot per token", describe_axes(inverse));
    }
    const TensorView& weights = args_.topk_weights;
    if (!none() || !weights.given()) return;
    if (!same(weights.dtype, kFloat32) || weights.ndim != 2 || weights.shape[0] != num_tokens_ ||
        weights.shape[1] != top_k_ || !readable(weights)) {
      invalid_input("topk_weights", "[T, k] contiguous float32 values", describe_axes(weights));
    }
  }

  void check_elements() {
    const DefaultFloatEnvironment environment;
    const FloatFormat format = format_of(args_.rows.dtype);
    const auto* const inverse = static_cast<const std::int32_t*>(args_.inverse.data);
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      for (std::int64_t column = 0; column < hidden_size_; ++column) {
        WeightedSum sum;
        for (std::int64_t pair = token * top_k_; pair < (token + 1) * top_k_; ++pair) {
          const std::int64_t row = inverse[pair];
          if (row >= 0 && row < num_rows_) sum.add(weight_at(pair), value_at(format, row, column));
        }
        check_element(args_.output, token, column, sum);
      }
    }
  }

  float value_at(FloatFormat format, std::int64_t row, std::int64_t column) const {
    const std::int64_t index = row * args_.rows.strides[0] + column;
    return static_cast<float>(value_of(format, float_bits_at(args_.rows, index)));
  }

  float weight_at(std::int64_t pair) const {
    if (!args_.topk_weights.given()) return 1;
    return static_cast<const float*>(args_.topk_weights.data)[pair];
  }

  const MoeUnpermuteArgs& args_;
  const std::int64_t num_rows_;
  const std::int64_t hidden_size_;
  const std::int64_t num_tokens_;
  const std::int64_t top_k_;
};

}  // namespace

std::vector<Violation> check_moe_unpermute(const MoeUnpermuteArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
