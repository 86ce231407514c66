// Quantisation of 16 numbers by a thread, and of groups of 128 by eight threads.
#pragma once

#include <cstdint>

#include "cuda/parts/floats.cuh"
#include "cuda/parts/fp8.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// The numbers that a thread quantises at once.
template <typename Source>
class Fp8Word {
 public:
  static constexpr int kElements = 16;

  /// Reads what other multiprocessors may just have written, at a multiple of 16 bytes; zeros if
  /// not `given`.
  __device__ __forceinline__ Fp8Word(const Source* source, bool given) : parts_{} {
    if (!given) return;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      parts_[i] = __ldcg(reinterpret_cast<const uint4*>(source) + i);
    }
  }

  /// The largest finite magnitude.
  __device__ __forceinline__ float largest() const {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      largest = fmaxf(largest, __uint_as_float(finite_magnitude(value(i))));
    }
    return largest;
  }

  /// In float8_e4m3fn, each divided by divide().
  template <typename Divide>
  __device__ __forceinline__ uint4 quantized(const Divide& divide) const {
    const auto four = [&](int i) {
      return fp8x2_bits(divide(value(i)), divide(value(i + 1))) |
             fp8x2_bits(divide(value(i + 2)), divide(value(i + 3))) << 16;
    };
    return make_uint4(four(0), four(4), four(8), four(12));
  }

 private:
  static constexpr int kParts = kElements * sizeof(Source) / sizeof(uint4);

  __device__ __forceinline__ float value(int i) const {
    return to_float(reinterpret_cast<const Source*>(parts_)[i]);
  }

  uint4 parts_[kParts];
};

/// A thread's word of a group of 128 numbers. Neighbouring threads have the others; all threads of
/// a warp take part.
struct Fp8GroupWord {
  static constexpr int kThreads = 8;  ///< that share a group

  uint4 bytes;
  float scale;

  template <typename Source>
  __device__ __forceinline__ Fp8GroupWord(const Fp8Word<Source>& word, bool use_ue8m0) {
    float largest = word.largest();
#pragma unroll
    for (int lanes = kThreads / 2; lanes > 0; lanes /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
    }
    scale = fp8_scale_for(__float_as_uint(largest), use_ue8m0);
    const Fp8Divisor divisor = fp8_divisor(scale);
    bytes = word.quantized([&](float value) { return quotient(value, divisor); });
  }
};

}  // namespace tessera::cuda
