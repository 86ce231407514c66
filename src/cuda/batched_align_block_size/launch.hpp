// The implementation of batched_align_block_size on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The one implementation, a single launch.
std::span<const core::Implementation> batched_align_block_size_implementations();

/// Loads the kernel's code into the current context, which must be one of the device.
Status load_batched_align_block_size_kernel(std::string_view op, int device_id,
                                            const CurrentContext& context);

}  // namespace tessera::cuda
