#include "cuda/device.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "core/errors.hpp"
#include "cuda/batched_align_block_size/kernel.hpp"
#include "cuda/code_targets.hpp"
#include "cuda/driver.hpp"

namespace tessera::cuda {
namespace {

int attribute(cudaDeviceAttr name, int device_id) {
  int value = 0;
  if (const cudaError_t error = cudaDeviceGetAttribute(&value, name, device_id)) text_of(error);
  return value;
}

int compute_capability_of(int device_id) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device_id) +
         attribute(cudaDevAttrComputeCapabilityMinor, device_id);
}

std::string name_of_capability(int compute_capability) {
  return std::to_string(compute_capability / 10) + "." + std::to_string(compute_capability % 10);
}

}  // namespace

std::string text_of(cudaError_t error) {
  // The runtime reports an error again and again until it is read.
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

bool can_run_on(int device_id) {
  return has_code_for(compute_capability_of(device_id), TESSERA_CUDA_ARCHITECTURES);
}

namespace {

/// Written once, before the device's flag is set.
std::array<DeviceProperties, kMaxDevices> known_properties;
std::array<std::atomic<bool>, kMaxDevices> is_known;

/// Finds the properties of a device. One of them depends on the code that is loaded there.
Status find_properties(std::string_view op, int device_id) {
  DeviceProperties properties;
  properties.compute_capability = compute_capability_of(device_id);
  properties.num_sms = attribute(cudaDevAttrMultiProcessorCount, device_id);
  properties.max_shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_id);
  properties.available_sms = properties.num_sms;
  const auto refuse = [&](StatusCode code, const std::string& expected, const std::string& got) {
    return core::refuse(code, op, "device", expected, got);
  };
  if (!can_run_on(device_id)) {
    return refuse(StatusCode::kUnsupported,
                  "a compute capability that this build has code for (" TESSERA_CUDA_ARCHITECTURES
                  ")",
                  name_of_capability(properties.compute_capability) + " of " +
                      core::to_string(DLDevice{kDLCUDA, device_id}));
  }
  const CurrentContext current(device_id);
  if (current.error() != CUDA_SUCCESS) {
    return refuse(StatusCode::kRuntimeError, "a usable device", text_of(current.error()));
  }
  cudaFuncAttributes attributes{};
  if (const cudaError_t error =
          cudaFuncGetAttributes(&attributes, batched_align_block_size_kernel())) {
    return refuse(StatusCode::kRuntimeError, "code that loads", text_of(error));
  }
  properties.code_capability = attributes.ptxVersion;
  static std::mutex writing;
  const std::lock_guard lock(writing);
  if (!is_known[device_id].load(std::memory_order_relaxed)) {
    known_properties[device_id] = properties;
    is_known[device_id].store(true, std::memory_order_release);
  }
  return {};
}

}  // namespace

const DeviceProperties& properties_of(int device_id) { return known_properties[device_id]; }

namespace {

constexpr int kNotAsked = 0;
thread_local int available_sms_of_call = kNotAsked;

}  // namespace

DeviceProperties properties_in(const Context& context) {
  DeviceProperties properties = properties_of(context.device.device_id);
  if (available_sms_of_call == kNotAsked) {
    available_sms_of_call =
        multiprocessors_of(static_cast<CUstream>(context.stream), properties.num_sms);
  }
  properties.available_sms = available_sms_of_call;
  return properties;
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
  available_sms_of_call = kNotAsked;
  if (is_known[device_id].load(std::memory_order_acquire)) return {};
  return find_properties(op, device_id);
}

}  // namespace tessera::cuda
