#include "moe_sum_checker.hpp"

#include "arrays.hpp"
#include "float_bits.hpp"
#include "weighted_sum.hpp"

namespace tessera::contract {
namespace {

class Checker : private SumChecker {
 public:
  explicit Checker(const MoeSumArgs& args)
      : args_(args),
        num_tokens_(args.input.shape[0]),
        top_k_(args.input.shape[1]),
        hidden_size_(args.input.shape[2]) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) {
      check_rows("output", args_.output, args_.input.dtype, num_tokens_, hidden_size_);
    }
    if (none()) check_elements();
    return in_order(kMoeSumRules);
  }

 private:
  void check_inputs() {
    const TensorView& input = args_.input;
    if (!is_float(input.dtype) || !has_rows(input, 3)) {
      invalid_input("input", "[T, k, H] float16, bfloat16 or float32 values in contiguous rows",
                    describe_axes(input));
    } else if (top_k_ == 0) {
      invalid_input("input", "at least one slot per token", describe_axes(input));
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
    const FloatFormat format = format_of(args_.input.dtype);
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      for (std::int64_t column = 0; column < hidden_size_; ++column) {
        WeightedSum sum;
        for (std::int64_t slot = 0; slot < top_k_; ++slot) {
          sum.add(weight_at(token, slot), input_at(format, token, slot, column));
        }
        check_element(args_.output, token, column, sum);
      }
    }
  }

  float input_at(FloatFormat format, std::int64_t token, std::int64_t slot,
                 std::int64_t column) const {
    const std::int64_t* strides = args_.input.strides;
    const std::int64_t index = token * strides[0] + slot * strides[1] + column;
    return static_cast<float>(value_of(format, float_bits_at(args_.input, index)));
  }

  float weight_at(std::int64_t token, std::int64_t slot) const {
    if (!args_.topk_weights.given()) return 1;
    return static_cast<const float*>(args_.topk_weights.data)[token * top_k_ + slot];
  }

  const MoeSumArgs& args_;
  const std::int64_t num_tokens_;
  const std::int64_t top_k_;
  const std::int64_t hidden_size_;
};

}  // namespace

std::vector<Violation> check_moe_sum(const MoeSumArgs& args) { return Checker(args).run(); }

}  // namespace tessera::contract
