// One weighted sum in the order of its terms, and the values that the contracts of moe_sum and
// moe_unpermute allow for it. Shares no code with the implementations.
#pragma once

#include <cstdint>
#include <string>

#include "float_bits.hpp"
#include "tessera/tensor_view.hpp"
#include "violations.hpp"

namespace tessera::contract {

class WeightedSum {
 public:
  /// The values that a contract allows for an output of one format.
  struct Asked {
    std::uint32_t bits;  ///< by exact_bits
    /// By error_bound: the least and the largest value, or a NaN if only a NaN is right. Unused
    /// if there is no bound.
    double low;
    double high;
    bool has_bound;

    bool allows(double value) const;
  };

  /// Adds the next term. The caller holds a DefaultFloatEnvironment, here and below.
  void add(float weight, float x);

  /// Of a sum without terms, +0.
  Asked asked(FloatFormat format) const;

 private:
  std::int64_t num_terms_ = 0;
  float sum_ = 0;          // as exact_bits asks
  double terms_ = 0;       // their sum
  double magnitudes_ = 0;  // of the finite terms
};

/// Base of the checkers of these ops.
class SumChecker : protected ViolationCollector {
 protected:
  /// Adds violations of error_bound and exact_bits unless element [token, column] of `output` is
  /// what `sum` asks for.
  void check_element(const TensorView& output, std::int64_t token, std::int64_t column,
                     const WeightedSum& sum);

 private:
  void add_element(const std::string& rule, const TensorView& output, std::int64_t token,
                   std::int64_t column, double expected, double found,
                   const std::string& expected_text, const std::string& found_text);
};

}  // namespace tessera::contract
