#include "device_buffer.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace tessera::test {
namespace {

constexpr std::size_t kGuardBytes = 512;
constexpr int kCanary = 0x5c;

/// Waits for writes to device memory, which go on when their calls have returned: streams of calls
/// do not wait for them.
void settle() { require(cudaStreamSynchronize(nullptr), "writes to device memory"); }

}  // namespace

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

DeviceBuffer::DeviceBuffer(std::size_t bytes, std::size_t misalignment, bool is_exact)
    : lead_bytes_(is_exact ? 0 : kGuardBytes + misalignment),
      tail_bytes_(is_exact ? 0 : kGuardBytes),
      bytes_(bytes) {
  const std::size_t all = lead_bytes_ + bytes_ + tail_bytes_;
  void* memory = nullptr;
  require(cudaMalloc(&memory, std::max<std::size_t>(all, 1)), "cudaMalloc");
  memory_ = static_cast<std::byte*>(memory);
  if (is_exact) return;
  require(cudaMemset(memory_, kCanary, all), "cudaMemset");
  settle();
}

DeviceBuffer::~DeviceBuffer() { (void)cudaFree(memory_); }

void DeviceBuffer::poison(std::byte value) {
  require(cudaMemset(data(), static_cast<int>(value), bytes_), "cudaMemset");
  settle();
}

void DeviceBuffer::upload(const void* source) {
  require(cudaMemcpy(data(), source, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  settle();
}

std::vector<std::byte> DeviceBuffer::download() const {
  std::vector<std::byte> copy(bytes_);
  require(cudaMemcpy(copy.data(), data(), bytes_, cudaMemcpyDeviceToHost),
          "cudaMemcpy from the device");
  return copy;
}

bool DeviceBuffer::intact() const {
  if (lead_bytes_ + tail_bytes_ == 0) return true;
  std::vector<std::byte> all(lead_bytes_ + bytes_ + tail_bytes_);
  require(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost),
          "cudaMemcpy from the device");
  const auto is_canary = [](std::byte b) { return b == std::byte{kCanary}; };
  return std::all_of(all.begin(), all.begin() + lead_bytes_, is_canary) &&
         std::all_of(all.end() - tail_bytes_, all.end(), is_canary);
}

TensorView view_of(const DeviceBuffer& buffer, DLDataType dtype) {
  TensorView view;
  view.data = buffer.data();
  view.num_elements = static_cast<std::int64_t>(buffer.size() * 8 / dtype.bits);
  view.dtype = dtype;
  view.device = kDevice;
  return view;
}

TensorView int32_view(const DeviceBuffer& buffer) { return view_of(buffer, {kDLInt, 32, 1}); }

}  // namespace tessera::test
