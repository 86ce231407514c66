// One call of align_block_size on guarded device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "device_buffer.hpp"
#include "guarded_call.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::test {

/// What a call on the device is made with, besides the case.
struct DeviceSurroundings {
  std::string implementation;
  std::byte poison{0xa5};
  std::size_t misalignment = 0;  ///< elements of each array
  bool is_exact = false;
  bool with_counts = true;        ///< expert_counts and num_dropped are given
  cudaStream_t stream = nullptr;  ///< where the call is made
  bool is_captured = false;       ///< into a graph, which is then launched on the same stream
};

/// Runs a case on device 0 and compares with what the host gave. Returns what is wrong, or nothing.
std::string check_on_device(const contract::AlignBlockSizeCase& c, std::uint64_t seed,
                            const Outputs& expected, const DeviceSurroundings& surroundings);

/// Calls the op on a few ids of device 0, which are said to be on the context's device.
Status call_on_device(const Context& context);

/// Names of the implementations that can run a case on device 0; the policy's choice first.
std::vector<std::string> device_implementations(const contract::AlignBlockSizeCase& c);

}  // namespace tessera::test
