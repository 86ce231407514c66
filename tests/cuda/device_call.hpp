// One call of align_block_size on guarded device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::test {

/// Ends the program with a message if a CUDA call failed: nothing after it could be trusted.
void require(cudaError_t error, const char* what);

/// A device allocation of exactly `bytes`, or with guard zones around them.
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

/// What a call on the device is made with, besides the case.
struct DeviceSurroundings {
  std::string implementation;
  std::byte poison{0xa5};
  std::size_t misalignment = 0;  ///< elements of each array
  bool is_exact = false;
  bool with_counts = true;  ///< expert_counts and num_dropped are given
};

/// Runs a case on device 0 and compares with what the host gave. Returns what is wrong, or nothing.
std::string check_on_device(const contract::AlignBlockSizeCase& c, std::uint64_t seed,
                            const Outputs& expected, const DeviceSurroundings& surroundings);

/// Calls the op on a few ids of device 0, which are said to be on the context's device.
Status call_on_device(const Context& context);

/// Names of the implementations that can run a case on device 0; the policy's choice first.
std::vector<std::string> device_implementations(const contract::AlignBlockSizeCase& c);

}  // namespace tessera::test
