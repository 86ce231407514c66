// Floating-point elements of 16 and 32 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dlpack/dlpack.h>

#include <cstdint>

namespace tessera::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

/// The nearest value, ties to even.
template <typename T>
__device__ __forceinline__ T rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half rounded<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

/// Element `index` of an array of float16, bfloat16 or float32.
__device__ __forceinline__ float float_at(const void* array, DLDataType dtype, std::int64_t index) {
  if (dtype.bits == 32) return static_cast<const float*>(array)[index];
  if (dtype.code == kDLBfloat) return to_float(static_cast<const __nv_bfloat16*>(array)[index]);
  return to_float(static_cast<const __half*>(array)[index]);
}

}  // namespace tessera::cuda
