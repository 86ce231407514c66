// CUDA contexts. The runtime knows only devices: cudaSetDevice creates the device's context, and
// restoring the previous device creates that device's context, too. So this uses the driver.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>
#include <string>

namespace tessera::cuda {

/// The largest number of devices that are used.
inline constexpr int kMaxDevices = 64;

/// Makes a context of a device current in this thread until the end of the scope. If a context of
/// the device is current already, such as the caller's own or a green one, it stays. Otherwise this
/// takes the primary context, as the runtime does. Creates no context of another device.
class CurrentContext {
 public:
  explicit CurrentContext(int device_id);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  CUresult error() const { return error_; }

  /// Unique within the process. A device that is reset gets a context with another id.
  std::uint64_t id() const { return id_; }

  /// The device of a stream, or -1 if the driver does not know. Legal while the stream is captured.
  int device_of(CUstream stream) const;

 private:
  int device_id_;
  bool is_pushed_ = false;
  CUresult error_ = CUDA_SUCCESS;
  CUcontext context_ = nullptr;
  std::uint64_t id_ = 0;
};

/// Multiprocessors that kernels in `stream` may use. This is `all` unless the stream belongs to a
/// partition of the device, such as a green context; the null stream belongs to the current
/// context.
int multiprocessors_of(CUstream stream, int all);

/// An axis of a tensor that the copy engine copies in boxes.
struct TensorMapAxis {
  std::int64_t length;
  std::int64_t stride;  ///< in elements; of the innermost axis 1
  int box;              ///< length of a box
};

/// Describes a tensor of elements of 8 or 16 bits, axes innermost first, to the copy engine of
/// compute capability 9.0. Addresses and strides are multiples of 16 bytes. A box along the
/// innermost axis is 128 bytes, whose words of 16 bytes change places in shared memory by an
/// exclusive or with the number of their line, in eights. Elements outside of the tensor are zeros.
CUresult encode_tensor_map(const void* data, int element_bytes, std::span<const TensorMapAxis> axes,
                           CUtensorMap* map);

/// "CUDA_ERROR_INVALID_DEVICE (invalid device ordinal)"
std::string text_of(CUresult error);

}  // namespace tessera::cuda
