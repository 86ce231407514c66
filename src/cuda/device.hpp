// What the launchers know of the CUDA devices of this process.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "cuda/align_block_size_policy.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Devices that can be told apart; more are not used.
inline constexpr int kMaxDevices = 64;

/// Lowest compute capability that this build has machine code for, as 10 * major + minor.
inline constexpr int kMinComputeCapability = TESSERA_CUDA_MIN_COMPUTE_CAPABILITY;

/// Number of devices, or 0 and the reason.
int count_devices(std::string* why_none);

/// Properties of an existing device. Creates no context.
const DeviceProperties& properties_of(int device_id);

/// "NVIDIA H200 (sm_90, 132 SMs)"
std::string describe(int device_id);

/// Fails unless the context's device exists and can run this build's kernels.
Status check_context(std::string_view op, const Context& context);

/// "cudaErrorNoDevice (no CUDA-capable device is detected)". Clears the error from this library's
/// copy of the runtime.
std::string text_of(cudaError_t error);

/// Makes a device current for a scope, and the one before it again afterwards.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device_id);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  cudaError_t error() const { return error_; }

 private:
  int before_ = -1;  ///< -1: nothing to restore
  cudaError_t error_ = cudaSuccess;
};

}  // namespace tessera::cuda
