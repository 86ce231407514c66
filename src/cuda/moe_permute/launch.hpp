// The implementation of moe_permute on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The one implementation. A workspace may hold anything on entry.
std::span<const core::Implementation> moe_permute_implementations();

/// Loads the code of the kernels that no other op has into the current context, which must be one
/// of the device.
Status load_moe_permute_kernels(std::string_view op, int device_id, const CurrentContext& context);

}  // namespace tessera::cuda
