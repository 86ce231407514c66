// The CUDA devices of this process.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "cuda/device_properties.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The number of devices. If it is 0, `why_none` gets the reason.
int count_devices(std::string* why_none);

/// Whether this build has code for a device, which must exist. Creates no context.
bool can_run_on(int device_id);

/// Properties of a device that has passed check_context.
const DeviceProperties& properties_of(int device_id);

/// The properties with the multiprocessors that the context's stream may use. Asks the driver once
/// after each check_context, that is once per call.
DeviceProperties properties_in(const Context& context);

/// "NVIDIA H200 (sm_90, 132 SMs)"
std::string describe(int device_id);

/// Fails unless the context's device exists and can run this build's kernels. The first call for a
/// device loads a kernel there, to find out which of the build's architectures the driver picks.
/// This creates the device's primary context if the device has no context.
Status check_context(std::string_view op, const Context& context);

/// "cudaErrorNoDevice (no CUDA-capable device is detected)". Clears the error in this
/// library's copy of the runtime.
std::string text_of(cudaError_t error);

}  // namespace tessera::cuda
