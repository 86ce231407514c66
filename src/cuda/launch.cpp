#include "cuda/launch.hpp"

#include <array>

#include "core/errors.hpp"
#include "cuda/device.hpp"

namespace tessera::cuda {
namespace {

constexpr const char* kWrongStream = "stream";

}  // namespace

cudaError_t prepare_kernel(const Kernel& kernel, int device_id, const CurrentContext& context) {
  std::atomic<std::uint64_t>& prepared = (*kernel.prepared)[device_id];
  if (prepared.load(std::memory_order_relaxed) == context.id()) return cudaSuccess;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel.function);  // loads its code
  if (error == cudaSuccess && kernel.needs_shared_memory) {
    // The runtime refuses a sum of dynamic and static shared memory that the device does not have.
    error = cudaFuncSetAttribute(
        kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(properties_of(device_id).max_shared_bytes - kernel.static_shared_bytes));
  }
  if (error == cudaSuccess && kernel.needs_large_clusters) {
    error =
        cudaFuncSetAttribute(kernel.function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) prepared.store(context.id(), std::memory_order_relaxed);
  return error;
}

namespace {

cudaError_t enqueue(const Launch& launch, void* args, const Context& context) {
  std::array<cudaLaunchAttribute, 3> attributes{};
  unsigned num_attributes = 0;
  if (launch.may_start_early && properties_of(context.device.device_id).code_capability >= 90) {
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
  return cudaLaunchKernelExC(&config, launch.kernel.function, arguments);
}

}  // namespace

LaunchOutcome try_launch(const Launch& launch, void* args, const Context& context) {
  const int device_id = context.device.device_id;
  const CurrentContext current(device_id);
  if (current.error() != CUDA_SUCCESS) return {"device", text_of(current.error())};
  const int device_of_stream = current.device_of(static_cast<CUstream>(context.stream));
  if (device_of_stream >= 0 && device_of_stream != device_id) {
    return {kWrongStream, core::to_string(DLDevice{kDLCUDA, device_of_stream})};
  }
  if (const cudaError_t error = prepare_kernel(launch.kernel, device_id, current)) {
    return {"kernel", text_of(error)};
  }
  const cudaError_t error = enqueue(launch, args, context);
  if (error == cudaErrorInvalidResourceHandle) return {kWrongStream, text_of(error)};
  if (error != cudaSuccess) return {"launch", text_of(error)};
  return {};
}

Status refuse_launch(std::string_view op, std::string_view expected, const Context& context,
                     const LaunchOutcome& outcome) {
  if (outcome.step == kWrongStream) {
    return core::refuse(StatusCode::kInvalidValue, op, outcome.step,
                        "a stream of " + core::to_string(context.device),
                        "one of another device: " + outcome.error);
  }
  return core::refuse(StatusCode::kRuntimeError, op, outcome.step, expected, outcome.error);
}

}  // namespace tessera::cuda
