// The implementations of select_and_align on CUDA devices.
#pragma once

#include <span>

#include "core/implementation.hpp"

namespace tessera::cuda {

/// One launch for few tokens, and else those of select_experts and align_block_size one after the
/// other.
std::span<const core::Implementation> select_and_align_implementations();

}  // namespace tessera::cuda
