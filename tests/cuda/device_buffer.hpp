// Device memory with canaries that detect writes beside it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "tessera/tensor_view.hpp"

namespace tessera::test {

inline constexpr DLDevice kDevice{kDLCUDA, 0};

/// Ends the program with a message if a CUDA call failed: nothing after it could be trusted.
void require(cudaError_t error, const char* what);

/// An allocation on kDevice of exactly `bytes`, or with guard zones around them.
class DeviceBuffer {
 public:
  /// `misalignment` moves the array off the alignment that memory has by default; the array is
  /// then guarded. An exact one leaves it to compute-sanitizer to find accesses beside it.
  DeviceBuffer(std::size_t bytes, std::size_t misalignment, bool is_exact);
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer();

  std::byte* data() const { return memory_ + lead_bytes_; }
  std::size_t size() const { return bytes_; }
  void poison(std::byte value);
  void upload(const void* source);
  std::vector<std::byte> download() const;
  bool intact() const;  ///< whether both guard zones are as they were

 private:
  std::size_t lead_bytes_;
  std::size_t tail_bytes_;
  std::size_t bytes_;
  std::byte* memory_ = nullptr;
};

TensorView view_of(const DeviceBuffer& buffer, DLDataType dtype);
TensorView int32_view(const DeviceBuffer& buffer);

/// Where the buffer's values first differ from those expected; empty if nowhere.
template <typename T>
std::string first_difference(const char* name, const DeviceBuffer& buffer,
                             std::span<const T> expected) {
  const std::vector<std::byte> bytes = buffer.download();
  std::vector<T> found(bytes.size() / sizeof(T));
  std::memcpy(found.data(), bytes.data(), bytes.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i] != expected[i]) {
      return std::string(name) + "[" + std::to_string(i) + "]: expected " +
             std::to_string(expected[i]) + ", got " + std::to_string(found[i]);
    }
  }
  return {};
}

}  // namespace tessera::test
