// The implementations of align_block_size on CUDA devices.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "core/align_block_size_problem.hpp"
#include "core/implementation.hpp"
#include "cuda/align_block_size/kernels.hpp"
#include "cuda/align_block_size/policy.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// One implementation per strategy. A workspace may hold anything on entry.
std::span<const core::Implementation> align_block_size_implementations();

/// Launches `plan` on the context's stream. The plan must be able to run the problem's shape.
Status launch(const Plan& plan, const core::AlignBlockSizeProblem& problem, const Context& context);

/// For ops that align pairs on their way: the policy's choice, and the workspace that it needs.
Status run_align_block_size(const core::AlignBlockSizeProblem& problem, const Context& context);
std::size_t align_block_size_workspace_bytes(const core::AlignBlockSizeProblem& problem,
                                             const Context& context);

/// The kernel arguments that a problem determines. Those that a plan determines are zero.
AlignBlockSizeExtendedArgs problem_args(const core::AlignBlockSizeProblem& problem);

IdWidth width_of(DLDataType dtype);

/// Loads the code of every kernel into the current context, which must be one of the device.
Status load_align_block_size_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context);

}  // namespace tessera::cuda
