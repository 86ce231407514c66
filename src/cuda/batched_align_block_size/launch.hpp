// The implementation of batched_align_block_size on CUDA devices.
#pragma once

#include <string_view>

#include "core/batched_align_block_size_implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Puts one kernel into the context's stream.
Status batched_align_block_size(const core::BatchedAlignBlockSizeProblem& problem,
                                const Context& context);

/// Loads the kernel's code into the current context, which is one of the device.
Status load_batched_align_block_size_kernel(std::string_view op, int device_id,
                                            const CurrentContext& context);

}  // namespace tessera::cuda
