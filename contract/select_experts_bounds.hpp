// Where the values of select_experts may lie if they are computed in float32, with elementary
// functions and in an order of the program's choice. For the op's checker. All in doubles, whose
// own errors are far below the bounds.
//
// With u = 2^-24, half an ulp of 1:
//
// - An exponential of x has a relative error of at most (5 + 3 |x|) u: 2 ulp of the function, and
//   the rounding of x three times, as a difference, as a product with log2(e), and as log2(e)
//   itself. That is the exponential of an argument that is off by so much, which is how sigmoid and
//   softplus, functions of an exponential, take it over.
// - A sum of n terms of one sign has a relative error of at most n u, in any order.
// - Every other operation, also log1p, has one of at most 4 u: 2 ulp.
// - Every result may be off by 2^-126, the smallest normal number: programs may lose subnormals.
// - A bias is added, and two choices are, in float32 or in a wider type.
//
// So a sigmoid is within about 5 ulp for ordinary logits, and a softmax within E / 2 ulp more. What
// needs no arithmetic has no error: choices without a bias, scores that the contract sets to 0, and
// sums with an infinity.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "select_experts_arithmetic.hpp"

namespace tessera::contract {

struct Interval {
  double low;
  double high;

  bool contains(double value) const { return low <= value && value <= high; }
};

/// The scores of all experts.
std::vector<Interval> score_bounds(const TokenToSelect& token);

/// The choices that these scores make.
std::vector<Interval> choice_bounds(const TokenToSelect& token,
                                    const std::vector<Interval>& scores);

/// The scores of all groups.
std::vector<Interval> group_bounds(const TokenToSelect& token,
                                   const std::vector<Interval>& choices);

/// The weights of these experts, as float32 values.
std::vector<Interval> weight_bounds(const TokenToSelect& token, const std::vector<Interval>& scores,
                                    std::span<const std::int32_t> ids);

}  // namespace tessera::contract
