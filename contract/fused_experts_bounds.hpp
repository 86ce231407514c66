// The error bounds of the elements of one call of fused_experts. For the op's checker.
#pragma once

#include <cstdint>
#include <functional>

#include "fused_experts_arithmetic.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::contract {

/// The multiply-adds above which a sample stands for all elements: at least one token, and as many
/// as the limit allows. A hash of the sizes of the call draws tokens and columns; the first and the
/// last token, one of the expert with the most pairs, and the first and the last columns are among
/// them.
inline constexpr std::int64_t kMaxCheckedMultiplyAdds = 200'000'000;

/// Whether a pair of the token counts.
bool has_pairs(const FusedExpertsArgs& args, std::int64_t token);

/// Takes the sum of the contract, before it is rounded to the data type of x.
using VisitBound = std::function<void(std::int64_t token, std::int64_t column, Bounded sum)>;

/// Visits elements of tokens with pairs, in ascending order. The arguments must be valid.
void for_each_bound(const FusedExpertsArgs& args, const VisitBound& visit);

}  // namespace tessera::contract
