// Judges the outputs of any implementation of quantize_fp8 against the contract in
// tessera/quantize_fp8.hpp, in time proportional to the length of the input. Shares no code with
// the implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/quantize_fp8.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked. Tessera keeps all of them; programs that
/// multiply by a reciprocal, or have another least scale, need not keep the last two.
inline constexpr Rule kQuantizeFp8Rules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "values is float8_e4m3fn [T, H], and scales float32, one per group."},
    {"nearest", "Each value is one of the two around x divided by the scale that was written."},
    {"scales", "Each scale has the bits of the contract, whatever the values are."},
    {"values", "Each value has the bits of x divided by the right scale, rounded to nearest even."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kQuantizeFp8Rules; none if the contract holds. The outputs may hold anything. If
/// the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_quantize_fp8(const QuantizeFp8Args& args);

}  // namespace tessera::contract
