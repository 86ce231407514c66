// fused_experts as a part of other ops.
#pragma once

#include <cstdint>
#include <string>

#include "core/fused_experts_problem.hpp"
#include "core/validation.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::ops {

/// Computes the symbols of the op's table that no argument gives, and checks its own rules about
/// numbers.
bool fused_experts_sizes(const FusedExpertsArgs& args, std::int64_t* symbols,
                         core::Validator* check);

core::FusedExpertsProblem fused_experts_problem(const FusedExpertsArgs& args,
                                                const std::int64_t* symbols);

/// The size of a problem in words.
std::string describe_experts(const core::FusedExpertsProblem& problem);

}  // namespace tessera::ops
