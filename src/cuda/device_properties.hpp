// What policies need to know of a device. Host code that needs no CUDA.
#pragma once

#include <cstddef>

namespace tessera::cuda {

struct DeviceProperties {
  int compute_capability = 0;        ///< 10 * major + minor
  int num_sms = 0;                   ///< streaming multiprocessors
  std::size_t max_shared_bytes = 0;  ///< of one CTA, with opt-in
  /// What the code was compiled for that runs there: less than the device's where the driver
  /// compiled a build's older PTX.
  int code_capability = compute_capability;
  /// Multiprocessors that the stream may use: fewer than all in a green context.
  int available_sms = num_sms;

  bool is_partitioned() const { return available_sms < num_sms; }
};

}  // namespace tessera::cuda
