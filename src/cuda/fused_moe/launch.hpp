// The implementations of fused_moe on CUDA devices.
#pragma once

#include <span>

#include "core/implementation.hpp"

namespace tessera::cuda {

/// One for each implementation of fused_experts, after the launch of select_experts. They have no
/// kernels of their own.
std::span<const core::Implementation> fused_moe_implementations();

}  // namespace tessera::cuda
