#include "cuda/device.hpp"

#include <algorithm>
#include <array>

#include "core/errors.hpp"

namespace tessera::cuda {
namespace {

int attribute(cudaDeviceAttr name, int device_id) {
  int value = 0;
  if (const cudaError_t error = cudaDeviceGetAttribute(&value, name, device_id)) text_of(error);
  return value;
}

DeviceProperties read_properties(int device_id) {
  DeviceProperties properties;
  properties.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device_id) +
                                  attribute(cudaDevAttrComputeCapabilityMinor, device_id);
  properties.num_sms = attribute(cudaDevAttrMultiProcessorCount, device_id);
  properties.max_shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_id);
  return properties;
}

std::string name_of_capability(int compute_capability) {
  return std::to_string(compute_capability / 10) + "." + std::to_string(compute_capability % 10);
}

}  // namespace

std::string text_of(cudaError_t error) {
  // Until it is read, the runtime reports the error again to whoever asks next.
  (void)cudaGetLastError();
  return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
}

int count_devices(std::string* why_none) {
  int count = 0;
  int driver_version = 0;
  if (cudaDriverGetVersion(&driver_version) == cudaSuccess && driver_version == 0) {
    *why_none = "no NVIDIA driver";
    return 0;
  }
  if (const cudaError_t error = cudaGetDeviceCount(&count)) {
    *why_none = "no usable CUDA device: " + text_of(error);
    return 0;
  }
  if (count == 0) *why_none = "no CUDA device";
  return std::min(count, kMaxDevices);
}

const DeviceProperties& properties_of(int device_id) {
  static const auto all = [] {
    std::array<DeviceProperties, kMaxDevices> properties;
    std::string why_none;
    const int count = count_devices(&why_none);
    for (int id = 0; id < count; ++id) properties[id] = read_properties(id);
    return properties;
  }();
  return all[device_id];
}

std::string describe(int device_id) {
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device_id)) {
    return text_of(error);
  }
  return std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
         " SMs)";
}

Status check_context(std::string_view op, const Context& context) {
  static const int num_devices = [] {
    std::string why_none;
    return count_devices(&why_none);
  }();
  const int device_id = context.device.device_id;
  if (device_id < 0 || device_id >= num_devices) {
    return core::refuse(StatusCode::kInvalidValue, op, "device",
                        "one of " + std::to_string(num_devices) + " CUDA device(s)",
                        core::to_string(context.device));
  }
  const int capability = properties_of(device_id).compute_capability;
  if (capability < kMinComputeCapability) {
    return core::refuse(
        StatusCode::kUnsupported, op, "device",
        "compute capability " + name_of_capability(kMinComputeCapability) + " or higher",
        name_of_capability(capability) + " of " + core::to_string(context.device));
  }
  return {};
}

CurrentDevice::CurrentDevice(int device_id) {
  int current = -1;
  error_ = cudaGetDevice(&current);
  if (error_ != cudaSuccess || current == device_id) return;
  error_ = cudaSetDevice(device_id);
  if (error_ == cudaSuccess) before_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

}  // namespace tessera::cuda
