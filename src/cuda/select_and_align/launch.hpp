// The implementation of select_and_align on CUDA devices.
#pragma once

#include <span>

#include "core/implementation.hpp"

namespace tessera::cuda {

/// The launches of select_experts, and after them those of align_block_size. It has no kernels of
/// its own.
std::span<const core::Implementation> select_and_align_implementations();

}  // namespace tessera::cuda
