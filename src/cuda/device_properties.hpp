// The properties of a device that policies depend on. No CUDA headers.
#pragma once

#include <cstddef>

namespace tessera::cuda {

struct DeviceProperties {
  int compute_capability = 0;        ///< 10 * major + minor
  int num_sms = 0;                   ///< streaming multiprocessors
  std::size_t max_shared_bytes = 0;  ///< per CTA, with opt-in
  /// The compute capability that the code running there was compiled for. It is lower than the
  /// device's if the driver compiled older PTX.
  int code_capability = compute_capability;
  /// Multiprocessors that the stream may use: in a green context fewer than all.
  int available_sms = num_sms;

  bool is_partitioned() const { return available_sms < num_sms; }
};

}  // namespace tessera::cuda
