// Quantisation of a group of 128 numbers by the threads of a warp.
#pragma once

#include <cstdint>

#include "cuda/parts/floats.cuh"
#include "cuda/parts/fp8.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// A thread's numbers of a group in float8_e4m3fn. Neighbouring threads have the others; all
/// threads of a warp take part.
struct Fp8Word {
  static constexpr int kThreads = 8;    ///< that share a group
  static constexpr int kElements = 16;  ///< of each

  uint4 bytes;
  float scale;

  /// Quantises what other multiprocessors may just have written, at a multiple of 16 bytes; zeros
  /// if not `given`.
  template <typename Source>
  __device__ __forceinline__ Fp8Word(const Source* source, bool given, bool use_ue8m0) {
    constexpr int kParts = kElements * sizeof(Source) / sizeof(uint4);
    uint4 parts[kParts] = {};
    if (given) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        parts[i] = __ldcg(reinterpret_cast<const uint4*>(source) + i);
      }
    }
    const auto value = [&](int i) { return to_float(reinterpret_cast<const Source*>(parts)[i]); };
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      largest = fmaxf(largest, __uint_as_float(finite_magnitude(value(i))));
    }
#pragma unroll
    for (int lanes = kThreads / 2; lanes > 0; lanes /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
    }
    scale = fp8_scale_for(__float_as_uint(largest), use_ue8m0);
    const Fp8Divisor divisor = fp8_divisor(scale);
    const auto four = [&](int i) {
      return fp8x2_bits(quotient(value(i), divisor), quotient(value(i + 1), divisor)) |
             fp8x2_bits(quotient(value(i + 2), divisor), quotient(value(i + 3), divisor)) << 16;
    };
    bytes = make_uint4(four(0), four(4), four(8), four(12));
  }
};

}  // namespace tessera::cuda
