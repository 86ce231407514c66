// The products of the model of fused_experts with weights in float8_e4m3fn, in float32 and in any
// order, and with faults that a test switches on.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tessera/fused_experts.hpp"

namespace tessera::contract {

enum class Fp8Fault {
  kNone,
  kScalesOfFirstExpert,  ///< for all experts
  kScalesExchanged,      ///< rows for columns
  kScalesOfNextBlock,    ///< of columns
  kUpBlocksContinue,     ///< those of gate rows, also where these end inside a block
  kOneScalePerToken,     ///< of x and the intermediate, where groups have their own
  kRoundsIntermediate,   ///< to bfloat16, before it is quantised
  kKeepsIntermediate,    ///< in float32
  kReciprocal,           ///< multiplies by it instead of dividing
  kIgnoresUe8m0,
  kUe8m0RoundsDown,
  kComputesGivenScales,
  kInfinityCounts,     ///< in a scale
  kSmallerLeastScale,  ///< without the 1e-10
  kTruncates,          ///< instead of rounding
  kHidesNan,           ///< makes it a 0
  kScalesBias,
};

/// Which operand a product scales, and when.
enum class Fp8Order {
  kSumsFirst,     ///< of 128 terms, each then times both scales
  kScalesFirst,   ///< all elements of both, in descending order
  kScalesVector,  ///< before the sum, with fused products; the weights' after it
};

/// A vector in float8_e4m3fn.
struct Fp8Elements {
  std::vector<float> values;
  std::vector<float> scales;  ///< one for each element
};

class Fp8Model {
 public:
  explicit Fp8Model(const FusedExpertsArgs& args) : args_(args) {}

  void set(Fp8Order order, Fp8Fault fault) {
    order_ = order;
    fault_ = fault;
  }

  Fp8Fault fault() const { return fault_; }

  /// `x` has the elements of the token, as they are.
  Fp8Elements hidden(std::int64_t token, std::span<const float> x) const;
  Fp8Elements intermediate(std::span<const float> activated) const;

  /// `weight` gives an element of the row.
  float product(bool is_first, std::int64_t expert, std::int64_t row, const Fp8Elements& vector,
                float bias, const std::function<float(std::int64_t)>& weight) const;

 private:
  bool has_blocks() const;
  Fp8Elements quantized(std::span<const float> elements, const float* given) const;
  float weight_scale(bool is_first, std::int64_t expert, std::int64_t row,
                     std::int64_t column) const;

  const FusedExpertsArgs& args_;
  Fp8Order order_ = Fp8Order::kSumsFirst;
  Fp8Fault fault_ = Fp8Fault::kNone;
};

}  // namespace tessera::contract
