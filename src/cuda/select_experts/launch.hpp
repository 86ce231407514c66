// The implementation of select_experts on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The one implementation, a single launch without a workspace.
std::span<const core::Implementation> select_experts_implementations();

/// Loads the code of the kernels into the current context, which must be one of the device.
Status load_select_experts_kernels(std::string_view op, int device_id,
                                   const CurrentContext& context);

}  // namespace tessera::cuda
