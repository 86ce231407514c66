// What the launchers know of the CUDA devices of this process.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "cuda/device_properties.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Number of devices, or 0 and the reason.
int count_devices(std::string* why_none);

/// Whether this build has code for an existing device. Creates no context.
bool can_run_on(int device_id);

/// Properties of a device that has passed check_context.
const DeviceProperties& properties_of(int device_id);

/// The same, with the multiprocessors that the context's stream may use. The driver is asked once
/// between two checks of a context: once per call.
DeviceProperties properties_in(const Context& context);

/// "NVIDIA H200 (sm_90, 132 SMs)"
std::string describe(int device_id);

/// Fails unless the context's device exists and can run this build's kernels. The first time for a
/// device it loads code there, to see which of the build's the driver picks; that creates the
/// device's primary context, where there is no context of the device.
Status check_context(std::string_view op, const Context& context);

/// "cudaErrorNoDevice (no CUDA-capable device is detected)". Clears the error from this library's
/// copy of the runtime.
std::string text_of(cudaError_t error);

}  // namespace tessera::cuda
