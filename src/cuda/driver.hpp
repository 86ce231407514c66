// Contexts, as the driver sees them. The runtime knows only devices: to make one current through it
// creates that device's context, and to restore the one before creates that one's, too.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>

namespace tessera::cuda {

/// Devices that can be told apart; more are not used.
inline constexpr int kMaxDevices = 64;

/// Makes a context of a device current in this thread, and undoes that at the end of the scope. A
/// context of the device that is current already stays: the caller's own, or a green one. Else it
/// is the primary one, which the runtime uses as well. No other device gets a context.
class CurrentContext {
 public:
  explicit CurrentContext(int device_id);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  CUresult error() const { return error_; }

  /// Unique in the life of the process; a device that was reset has a context of another id.
  std::uint64_t id() const { return id_; }

  /// The device of a stream, or -1 if the driver does not say. Legal while the stream is captured.
  int device_of(CUstream stream) const;

 private:
  int device_id_;
  bool is_pushed_ = false;
  CUresult error_ = CUDA_SUCCESS;
  CUcontext context_ = nullptr;
  std::uint64_t id_ = 0;
};

/// Multiprocessors that kernels in `stream` may use; `all` unless the stream, or for the null
/// stream the current context, belongs to a green context or another partition of the device.
int multiprocessors_of(CUstream stream, int all);

/// "CUDA_ERROR_INVALID_DEVICE (invalid device ordinal)"
std::string text_of(CUresult error);

}  // namespace tessera::cuda
