#include "cuda/launch.hpp"

#include <array>

#include "core/errors.hpp"
#include "cuda/device.hpp"

namespace tessera::cuda {

cudaError_t prepare_kernel(const void* kernel, KernelNeeds needs, int device_id,
                           PreparedDevices* devices) {
  const std::uint64_t device_bit = std::uint64_t{1} << device_id;
  if ((devices->load(std::memory_order_relaxed) & device_bit) != 0) return cudaSuccess;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);  // loads its code
  if (error == cudaSuccess && needs.dynamic_shared_memory) {
    error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(properties_of(device_id).max_shared_bytes - attributes.sharedSizeBytes));
  }
  if (error == cudaSuccess && needs.large_clusters) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) devices->fetch_or(device_bit, std::memory_order_relaxed);
  return error;
}

cudaError_t launch_kernel(const Launch& launch, void* args, const Context& context) {
  std::array<cudaLaunchAttribute, 3> attributes{};
  unsigned num_attributes = 0;
  if (properties_of(context.device.device_id).compute_capability >= 90) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (launch.cluster_size != 0) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(launch.cluster_size), 1, 1};
  }
  if (launch.is_cooperative) {
    cudaLaunchAttribute& attribute = attributes[num_attributes++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.num_ctas);
  config.blockDim = dim3(launch.num_threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes.data();
  config.numAttrs = num_attributes;
  void* arguments[] = {args};
  return cudaLaunchKernelExC(&config, launch.kernel, arguments);
}

Status refuse_launch(std::string_view op, std::string_view what, std::string_view expected,
                     const Context& context, cudaError_t error) {
  if (error == cudaErrorInvalidResourceHandle) {
    return core::refuse(StatusCode::kInvalidValue, op, "stream",
                        "a stream of " + core::to_string(context.device),
                        "one of another device: " + text_of(error));
  }
  return core::refuse(StatusCode::kRuntimeError, op, what, expected, text_of(error));
}

}  // namespace tessera::cuda
