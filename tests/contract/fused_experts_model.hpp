// A small program for fused_experts, in float32 and in any order of its sums, with rows of either
// kind, and with faults that a test switches on. It shares no code with the implementations.
#pragma once

#include <cstdint>
#include <vector>

#include "fused_experts_cases.hpp"
#include "fused_experts_fp8_model.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::contract {

enum class Fault {
  kNone,
  kSkipsHiddenStep,        ///< 16 terms of the first sums
  kSkipsIntermediateStep,  ///< 16 terms of the second
  kIgnoresHiddenTail,      ///< what fills no 16 terms
  kIgnoresIntermediateTail,
  kExchangesGateAndUp,
  kReadsGateAndUpAsHalves,  ///< of interleaved rows
  kWeighsTwice,
  kWeighsOutputInsteadOfInput,
  kBiasAfterActivation,
  kBiasNotWeighted,  ///< w2_bias
  kDropsLastSlot,
  kRoundsGateAndUp,
  kRoundsGateOnly,  ///< the factor of the activation that depends on the gate
  kRoundsTwice,     ///< the intermediate, to a bit more than the data type of x first
  kDoesNotRoundIntermediate,
  kRoundsY,
  kRoundsSum,   ///< after each slot
  kErfForTanh,  ///< and the reverse
  kReluNotSquared,
  kIgnoresLimit,
  kIgnoresLimitBelow,  ///< clamps up from above alone
  kLimitsGateBelow,    ///< as it clamps up
  kAlphaOne,
  kForgetsBeta,
  kDefaultBeta,
  kIgnoresExpertMap,
  kIdBelowZeroIsZero,
  kIdBeyondIsLast,
  kIdOf32Bits,
  kNanOfUnusedExpert,   ///< 0 times the row of an expert that no pair has
  kNanOfUncountedPair,  ///< 0 times the result of a pair that does not count
  kHidesNan,            ///< a maximum that prefers numbers
  kTransposedAsRows,
  kIgnoresGap,
  kMinusZero,  ///< where no pair counts
};

/// Forwards; backwards, where a weight on the input is applied to x; in 8 parts with fused
/// products.
enum class Order { kForward, kBackward, kParts };

/// What a slot adds to the sum of its token.
enum class Rows { kFloat32, kRounded };

/// The arguments of a case with an output, on which the program runs again and again.
class FusedExpertsModel {
 public:
  explicit FusedExpertsModel(const FusedExpertsCase& c, std::uint64_t seed = 1);

  FusedExpertsArgs& args() { return args_; }

  /// Fills the output.
  void run(Order order, Rows rows, Fault fault = Fault::kNone,
           Fp8Fault fp8_fault = Fp8Fault::kNone);

 private:
  struct Floats {
    TensorView view;
    std::vector<float> memory;
    float at(std::int64_t i, std::int64_t j, std::int64_t k) const;
  };
  static Floats floats_of(const TensorView& view);

  template <typename Term>
  float sum(std::int64_t length, const Term& term) const;
  float round(double value) const;
  std::int64_t expert_of(std::int64_t token, std::int64_t slot) const;
  float phi(float z) const;
  float activate(float gate, float up) const;
  bool has_scales() const { return args_.w13_scale.given(); }
  FloatFormat format() const;
  float gate_up(std::int64_t token, std::int64_t expert, std::int64_t row, float weight) const;
  std::vector<float> intermediate(std::int64_t token, std::int64_t expert, float weight) const;
  float down(std::int64_t expert, std::int64_t row, const std::vector<float>& activated) const;
  void run_token(std::int64_t token);

  CaseArguments made_;
  FusedExpertsArgs args_;
  std::vector<std::byte> output_;
  Floats x_;
  Floats w13_;
  Floats w2_;
  Floats w13_bias_;
  Floats w2_bias_;
  Floats topk_weights_;
  Fp8Model fp8_;
  Order order_ = Order::kForward;
  Rows rows_ = Rows::kFloat32;
  Fault fault_ = Fault::kNone;
};

}  // namespace tessera::contract
