// The implementations of select_and_align on CUDA devices.
#pragma once

#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "cuda/driver.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// One launch for few tokens, and else those of select_experts and align_block_size one after the
/// other.
std::span<const core::Implementation> select_and_align_implementations();

/// Loads the code of the kernels of one launch into the current context, which must be one of the
/// device.
Status load_select_and_align_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context);

}  // namespace tessera::cuda
