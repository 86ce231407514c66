// The CPU implementations of quantize_fp8.
#pragma once

#include "core/quantize_fp8_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Eight columns at a time with AVX2, on several threads.
Status quantize_fp8_avx2(const core::QuantizeFp8Problem& problem, const Context& context);
/// Refuses other processors.
Status quantize_fp8_avx2_refusal(const core::QuantizeFp8Problem& problem, const Context& context,
                                 bool forced);

/// As many columns at a time as the compiler vectorises, on several threads.
Status quantize_fp8_portable(const core::QuantizeFp8Problem& problem, const Context& context);

/// Follows the contract literally, on the calling thread.
Status quantize_fp8_reference(const core::QuantizeFp8Problem& problem, const Context& context);

}  // namespace tessera::cpu
