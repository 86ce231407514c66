// The arithmetic of select_experts in float32, as tessera/select_experts.hpp states it, operation
// by operation. For the op's checker.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/select_experts.hpp"

namespace tessera::contract {

/// The elementary functions of the contract.
float contract_exponential(float x);
float contract_log1p(float y);
float contract_softplus(float v);

/// The inputs of one token, and the numbers of the call.
struct TokenToSelect {
  std::span<const float> v;     ///< as the contract defines it
  std::span<const float> bias;  ///< empty: none
  const SelectExpertsArgs* args;

  bool has_bias() const { return !bias.empty(); }
  std::int64_t num_experts() const { return static_cast<std::int64_t>(v.size()); }
  std::int64_t group_size() const { return num_experts() / args->num_expert_group; }
};

/// The tokens of a call with valid inputs.
class TokensToSelect {
 public:
  explicit TokensToSelect(const SelectExpertsArgs& args);

  /// The tokens that count, the first ones.
  std::int64_t num_valid() const { return num_valid_; }

  /// Token t, until the next one is read.
  TokenToSelect read(std::int64_t t);

 private:
  const SelectExpertsArgs& args_;
  std::int64_t num_valid_;
  std::vector<float> v_;
};

/// The outputs that the contract asks for.
struct SelectedExperts {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

/// Needs the default floating-point environment.
SelectedExperts select_by_contract(const TokenToSelect& token);

/// The same for all tokens of a call with valid inputs: [T, k] in row-major order.
SelectedExperts select_by_contract(const SelectExpertsArgs& args);

}  // namespace tessera::contract
