// What quantize_fp8 does to consecutive columns of one row.
#pragma once

#include <cstdint>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {

/// Bits of the largest finite magnitude, as a float; 0 if there is none. Magnitudes of floats are
/// in the order of their bits.
template <typename T>
std::int32_t largest_magnitude_avx2(const T* x, std::int64_t num_columns);

template <typename T>
void quantize_columns_avx2(const T* x, std::int64_t num_columns, float scale, std::uint8_t* values);

}  // namespace tessera::cpu
