// A borrowed array, as every Tessera op takes it.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace tessera {

inline constexpr DLDevice kHostDevice{kDLCPU, 0};

/// A flat view of memory that somebody else owns. Tessera's ops treat arrays as flattened in
/// row-major order, so a view keeps the number of elements and whether they are contiguous,
/// not the shape. A default-constructed view stands for "not given".
struct TensorView {
  void* data = nullptr;
  std::int64_t num_elements = 0;
  DLDataType dtype{kDLInt, 0, 1};
  DLDevice device = kHostDevice;
  bool contiguous = true;

  bool given() const noexcept { return dtype.bits != 0; }

  /// View of a DLPack tensor; the tensor must outlive the view.
  static TensorView of(const DLTensor& tensor) noexcept {
    TensorView view;
    view.num_elements = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      const std::int64_t extent = tensor.shape[i];
      // The stride of an axis with a single element is never used to address anything.
      if (tensor.strides != nullptr && extent > 1 && tensor.strides[i] != view.num_elements) {
        view.contiguous = false;
      }
      view.num_elements *= extent;
    }
    if (view.num_elements == 0) view.contiguous = true;
    view.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
    view.dtype = tensor.dtype;
    // There is one host, though a framework may number parts of it, as JAX does.
    view.device = tensor.device.device_type == kDLCPU ? kHostDevice : tensor.device;
    return view;
  }

  /// View of contiguous numbers, by default on the host.
  template <typename T>
  requires std::is_arithmetic_v<T>
  static TensorView of(std::span<T> elements, DLDevice device = kHostDevice) noexcept {
    TensorView view;
    // A view carries no constness: ops state which of their arguments they write.
    view.data = const_cast<std::remove_const_t<T>*>(elements.data());
    view.num_elements = static_cast<std::int64_t>(elements.size());
    constexpr auto kCode = std::is_floating_point_v<T> ? kDLFloat
                           : std::is_signed_v<T>       ? kDLInt
                                                       : kDLUInt;
    view.dtype = {static_cast<std::uint8_t>(kCode), static_cast<std::uint8_t>(8 * sizeof(T)), 1};
    view.device = device;
    return view;
  }
};

}  // namespace tessera
