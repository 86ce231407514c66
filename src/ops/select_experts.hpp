// select_experts as a part of other ops.
#pragma once

#include <cstdint>
#include <string>

#include "core/select_experts_problem.hpp"
#include "core/validation.hpp"
#include "tessera/select_experts.hpp"

namespace tessera::ops {

/// Checks the op's own rules about numbers. `symbols` are those of its table, which arguments give.
bool select_experts_sizes(const SelectExpertsArgs& args, std::int64_t* symbols,
                          core::Validator* check);

core::SelectExpertsProblem select_experts_problem(const SelectExpertsArgs& args,
                                                  const std::int64_t* symbols);

/// The size of a problem in words.
std::string describe_selection(const core::SelectExpertsProblem& problem);

}  // namespace tessera::ops
