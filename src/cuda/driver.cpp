#include "cuda/driver.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>

namespace tessera::cuda {
namespace {

/// Finds a function of the driver with the interface of a CUDA version; null if the driver is
/// older.
template <typename Function>
void find(const char* name, unsigned version, Function** function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  (void)cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
  *function = result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function*>(found) : nullptr;
}

/// The driver's functions, found through the runtime so that the backend loads without a driver.
struct Driver {
  decltype(cuGetErrorName)* get_error_name;
  decltype(cuGetErrorString)* get_error_string;
  decltype(cuCtxGetCurrent)* ctx_get_current;
  decltype(cuCtxGetDevice)* ctx_get_device;
  decltype(cuCtxGetId)* ctx_get_id;
  decltype(cuCtxPushCurrent)* ctx_push_current;
  decltype(cuCtxPopCurrent)* ctx_pop_current;
  decltype(cuDevicePrimaryCtxGetState)* primary_ctx_get_state;
  decltype(cuDevicePrimaryCtxRetain)* primary_ctx_retain;
  decltype(cuStreamGetCtx)* stream_get_ctx;
  decltype(cuTensorMapEncodeTiled)* tensor_map_encode_tiled;
  // Null in drivers without green contexts.
  decltype(cuStreamGetCtx_v2)* stream_get_green_ctx;
  decltype(cuCtxGetDevResource)* ctx_get_dev_resource;
  decltype(cuGreenCtxGetDevResource)* green_ctx_get_dev_resource;

  Driver() {
    find("cuGetErrorName", 6000, &get_error_name);
    find("cuGetErrorString", 6000, &get_error_string);
    find("cuCtxGetCurrent", 4000, &ctx_get_current);
    find("cuCtxGetDevice", 2000, &ctx_get_device);
    find("cuCtxGetId", 12000, &ctx_get_id);
    find("cuCtxPushCurrent", 4000, &ctx_push_current);
    find("cuCtxPopCurrent", 4000, &ctx_pop_current);
    find("cuDevicePrimaryCtxGetState", 7000, &primary_ctx_get_state);
    find("cuDevicePrimaryCtxRetain", 7000, &primary_ctx_retain);
    find("cuStreamGetCtx", 9020, &stream_get_ctx);
    find("cuTensorMapEncodeTiled", 12000, &tensor_map_encode_tiled);
    find("cuStreamGetCtx", 12050, &stream_get_green_ctx);
    find("cuCtxGetDevResource", 12040, &ctx_get_dev_resource);
    find("cuGreenCtxGetDevResource", 12040, &green_ctx_get_dev_resource);
  }
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

/// Retains the primary context of a device, once and again after each reset. It is never released,
/// as kernels may be running in it.
CUresult primary_context(int device_id, CUcontext* context) {
  static std::array<std::atomic<CUcontext>, kMaxDevices> retained;
  unsigned flags = 0;
  int is_active = 0;
  CUresult error = driver().primary_ctx_get_state(device_id, &flags, &is_active);
  *context = retained[device_id].load(std::memory_order_acquire);
  if (error == CUDA_SUCCESS && (*context == nullptr || is_active == 0)) {
    error = driver().primary_ctx_retain(context, device_id);
    if (error == CUDA_SUCCESS) retained[device_id].store(*context, std::memory_order_release);
  }
  return error;
}

/// Whether the stream exists in every context, and so belongs to the current one.
bool is_of_current_context(CUstream stream) {
  return stream == nullptr || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
}

}  // namespace

std::string text_of(CUresult error) {
  const char* name = nullptr;
  const char* text = nullptr;
  (void)driver().get_error_name(error, &name);
  (void)driver().get_error_string(error, &text);
  return std::string(name == nullptr ? "an unknown error" : name) + " (" +
         (text == nullptr ? "" : text) + ")";
}

CurrentContext::CurrentContext(int device_id) : device_id_(device_id) {
  // Without a context, to query its device is an error that a sanitizer would report.
  CUdevice current = -1;
  error_ = driver().ctx_get_current(&context_);
  if (error_ == CUDA_SUCCESS && context_ != nullptr) error_ = driver().ctx_get_device(&current);
  if (current != device_id) {
    error_ = primary_context(device_id, &context_);
    if (error_ == CUDA_SUCCESS) error_ = driver().ctx_push_current(context_);
    if (error_ != CUDA_SUCCESS) return;
    is_pushed_ = true;
  }
  unsigned long long id = 0;
  if (error_ == CUDA_SUCCESS) error_ = driver().ctx_get_id(context_, &id);
  id_ = id;
}

CurrentContext::~CurrentContext() {
  CUcontext popped = nullptr;
  if (is_pushed_) (void)driver().ctx_pop_current(&popped);
}

int CurrentContext::device_of(CUstream stream) const {
  if (is_of_current_context(stream)) return device_id_;
  CUcontext context = nullptr;
  if (driver().stream_get_ctx(stream, &context) != CUDA_SUCCESS) return -1;
  if (context == context_) return device_id_;
  CUdevice device = -1;
  if (driver().ctx_push_current(context) != CUDA_SUCCESS) return -1;
  if (driver().ctx_get_device(&device) != CUDA_SUCCESS) device = -1;
  (void)driver().ctx_pop_current(&context);
  return device;
}

int multiprocessors_of(CUstream stream, int all) {
  const Driver& d = driver();
  if (d.stream_get_green_ctx == nullptr || d.ctx_get_dev_resource == nullptr) return all;
  CUcontext context = nullptr;
  CUgreenCtx green = nullptr;
  // Without a current context, the primary one will be used.
  if (is_of_current_context(stream) &&
      (d.ctx_get_current(&context) != CUDA_SUCCESS || context == nullptr)) {
    return all;
  }
  if (d.stream_get_green_ctx(stream, &context, &green) != CUDA_SUCCESS) return all;
  const auto count = [&](CUresult error, const CUdevResource& resource) {
    return error == CUDA_SUCCESS ? std::min(all, static_cast<int>(resource.sm.smCount)) : all;
  };
  CUdevResource resource{};
  if (green != nullptr) {
    return count(d.green_ctx_get_dev_resource(green, &resource, CU_DEV_RESOURCE_TYPE_SM), resource);
  }
  // A context keeps its multiprocessors, and the query takes a tenth of the time of a launch.
  thread_local unsigned long long last_id = 0;
  thread_local int last_count = 0;
  unsigned long long id = 0;
  if (d.ctx_get_id(context, &id) != CUDA_SUCCESS) return all;
  if (id != last_id) {
    last_count =
        count(d.ctx_get_dev_resource(context, &resource, CU_DEV_RESOURCE_TYPE_SM), resource);
    last_id = id;
  }
  return std::min(all, last_count);
}

CUresult encode_tensor_map(const void* data, int element_bytes, std::span<const TensorMapAxis> axes,
                           CUtensorMap* map) {
  constexpr std::size_t kMaxTensorMapAxes = 5;
  std::array<cuuint64_t, kMaxTensorMapAxes> lengths{};
  std::array<cuuint64_t, kMaxTensorMapAxes> stride_bytes{};  // of all axes but the innermost
  std::array<cuuint32_t, kMaxTensorMapAxes> box{};
  std::array<cuuint32_t, kMaxTensorMapAxes> steps{};
  for (std::size_t i = 0; i < axes.size(); ++i) {
    lengths[i] = static_cast<cuuint64_t>(axes[i].length);
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(axes[i].stride * element_bytes);
    box[i] = static_cast<cuuint32_t>(axes[i].box);
    steps[i] = 1;
  }
  return driver().tensor_map_encode_tiled(
      map, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16,
      static_cast<cuuint32_t>(axes.size()), const_cast<void*>(data), lengths.data(),
      stride_bytes.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace tessera::cuda
