// The implementations of select_experts on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "core/select_experts_problem.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Single launches without a workspace.
std::span<const core::Implementation> select_experts_implementations();

/// The op as a part of another one: by the implementation that the policy picks. For few tokens it
/// may start before its predecessor in the stream ends, so that what comes after it is launched
/// sooner. The op by itself does not: see Launch.
Status run_select_experts(const core::SelectExpertsProblem& problem, const Context& context);
Status select_experts_refusal(const core::SelectExpertsProblem& problem, const Context& context,
                              bool is_asked_for);

/// Loads the code of the kernels into the current context, which must be one of the device.
Status load_select_experts_kernels(std::string_view op, int device_id,
                                   const CurrentContext& context);

}  // namespace tessera::cuda
