// The implementation of quantize_fp8 on CUDA devices.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/implementation.hpp"
#include "core/quantize_fp8_problem.hpp"
#include "cuda/driver.hpp"
#include "cuda/quantize_fp8/kernel.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The one implementation: a single launch, or two for the computed scale of a whole tensor, which
/// need a workspace of a few KiB.
std::span<const core::Implementation> quantize_fp8_implementations();

/// quantize_fp8 as a step of another op, which needs no workspace where a whole tensor has a given
/// scale, or rows or groups of 1x128 have theirs. Rows that do not count are left out.
Status run_quantize_fp8(const core::QuantizeFp8Problem& problem, const Context& context,
                        const QuantizeFp8Rows& rows);

/// Loads the code of the kernels into the current context, which must be one of the device.
Status load_quantize_fp8_kernels(std::string_view op, int device_id, const CurrentContext& context);

}  // namespace tessera::cuda
