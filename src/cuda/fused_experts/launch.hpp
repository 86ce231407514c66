// The implementations of fused_experts on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// One implementation per strategy. A workspace may hold anything on entry.
std::span<const core::Implementation> fused_experts_implementations();

/// Loads the code of the kernels into the current context, which must be one of the device.
Status load_fused_experts_kernels(std::string_view op, int device_id,
                                  const CurrentContext& context);

}  // namespace tessera::cuda
