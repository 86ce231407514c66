// Launching a kernel on the stream that the caller of the FFI is on.
#pragma once

#include <cuda_runtime.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <algorithm>
#include <cstdint>

namespace tessera::bench {

using tvm::ffi::TensorView;

inline void throw_unless_ok(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    TVM_FFI_THROW(RuntimeError) << what << ": " << cudaGetErrorString(error);
}

inline cudaStream_t stream_of(const TensorView& tensor) {
  const DLDevice device = tensor.device();
  return static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
}

template <typename T>
T* data_of(const TensorView& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

/// What every kernel here needs of a problem. `expert_map` is null without a map.
template <typename Id>
struct Problem {
  const Id* topk_ids;
  const std::int32_t* expert_map;
  std::int32_t num_ids;
  std::int32_t block_size;
  std::int32_t num_experts;
  std::int32_t* sorted_token_ids;
  std::int32_t capacity;
  std::int32_t* expert_ids;
  std::int32_t num_blocks;
  std::int32_t* num_tokens_post_pad;

  /// What expert_ids shows for blocks of this expert.
  __device__ std::int32_t shown_expert(std::int32_t expert) const {
    if (expert_map == nullptr) return expert;
    const std::int32_t local = expert_map[expert];
    return local >= 0 && local < num_experts ? local : -1;
  }
};

/// CTAs of `num_threads` that give each thread a few of `num_elements`, at most four per SM of a
/// large GPU.
inline int grid_for(std::int64_t num_elements, int num_threads) {
  const std::int64_t wanted = (num_elements + 4 * num_threads - 1) / (4 * num_threads);
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, 528));
}

/// Launches; with `pdl`, as a programmatic dependent of the kernel before it in the stream.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), int num_ctas, int num_threads,
            std::size_t shared_bytes, cudaStream_t stream, bool pdl, Parameters... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_ctas);
  config.blockDim = dim3(num_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = pdl ? 1 : 0;
  throw_unless_ok(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace tessera::bench
