// Device memory with canaries that detect writes beside it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
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

}  // namespace tessera::test
