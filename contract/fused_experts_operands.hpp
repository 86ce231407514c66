// What the products of fused_experts multiply: hidden states, intermediates and rows of weights as
// doubles, in float8_e4m3fn times their scales. For the op's checker.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "float_bits.hpp"
#include "fused_experts_arithmetic.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::contract {

bool has_fp8_weights(const FusedExpertsArgs& args);

/// Elements of a floating-point array as doubles.
class FloatReader {
 public:
  explicit FloatReader(const TensorView& view);

  double at(std::int64_t index) const;
  /// Reads elements `stride` apart.
  void read(std::int64_t begin, std::int64_t stride, std::span<double> elements) const;

 private:
  TensorView view_;
  std::vector<float> values_;  ///< by the bits of an element, of 16 or fewer
};

class HiddenStates {
 public:
  explicit HiddenStates(const FusedExpertsArgs& args) : args_(args), x_(args.x) {}

  void read(std::int64_t token, BoundedVector* vector) const;

 private:
  const FusedExpertsArgs& args_;
  const FloatReader x_;
};

class Intermediate {
 public:
  explicit Intermediate(const FusedExpertsArgs& args) : args_(args) {}

  /// Makes the vector of the second product from the activation's values.
  void assign(std::span<const Bounded> activated, BoundedVector* vector) const;

 private:
  const FusedExpertsArgs& args_;
};

class WeightRows {
 public:
  WeightRows(const FusedExpertsArgs& args, const TensorView& weights, const TensorView& scales);

  void read(std::int64_t expert, std::int64_t row, WeightRow* result) const;

 private:
  double scale_at(std::int64_t expert, std::int64_t row, std::int64_t column) const;

  const TensorView weights_;
  const TensorView scales_;
  const std::int64_t half_rows_;  ///< from this row on, blocks begin anew
  const FloatReader reader_;
};

/// A call's scales that are not as the contract asks.
struct ScaleFault {
  const char* name = nullptr;  ///< null: they are right
  std::string expected;
  std::string found;
};
ScaleFault fault_of_scales(const FusedExpertsArgs& args);

}  // namespace tessera::contract
