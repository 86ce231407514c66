// A borrowed array, as every Tessera op takes it.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <type_traits>

namespace tessera {

inline constexpr DLDevice kHostDevice{kDLCPU, 0};

/// The largest number of axes whose lengths a view keeps.
inline constexpr int kMaxAxes = 4;

/// A view of memory that somebody else owns. A default-constructed view stands for "not given".
///
/// Ops that take an array flattened in row-major order, as the alignment ops do, read
/// `num_elements` and `contiguous` alone. Ops that take an array with axes read `ndim`,
/// `shape` and `strides`, which every `of` fills in.
struct TensorView {
  void* data = nullptr;
  std::int64_t num_elements = 0;
  DLDataType dtype{kDLInt, 0, 1};
  DLDevice device = kHostDevice;
  bool contiguous = true;
  std::int32_t ndim = 0;
  std::int64_t shape[kMaxAxes] = {};    ///< of the first kMaxAxes axes
  std::int64_t strides[kMaxAxes] = {};  ///< of the same axes, in elements

  bool given() const noexcept { return dtype.bits != 0; }

  /// View of a DLPack tensor, which must outlive the view. If it has fewer than 0 axes, a negative
  /// length, or more elements than 64 bits count, so has the view, and every op refuses it.
  static TensorView of(const DLTensor& tensor) noexcept {
    TensorView view;
    view.num_elements = 1;
    view.ndim = tensor.ndim;
    std::int64_t shortest = std::min<std::int64_t>(tensor.ndim, 0);
    bool overflows = false;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
      const std::int64_t extent = tensor.shape[i];
      const std::int64_t stride = tensor.strides != nullptr ? tensor.strides[i] : view.num_elements;
      // The stride of an axis with a single element is never used to address anything.
      if (extent > 1 && stride != view.num_elements) view.contiguous = false;
      if (i < kMaxAxes) {
        view.shape[i] = extent;
        view.strides[i] = stride;
      }
      shortest = std::min(shortest, extent);
      overflows |= __builtin_mul_overflow(view.num_elements, extent, &view.num_elements);
    }
    if (overflows) view.num_elements = std::numeric_limits<std::int64_t>::max();
    if (shortest < 0) view.num_elements = shortest;
    if (view.num_elements == 0) view.contiguous = true;
    // Without memory there is no offset into it, either: ops refuse a null pointer.
    view.data = tensor.data == nullptr ? nullptr
                                       : static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
    view.dtype = tensor.dtype;
    // There is one host, though a framework may number parts of it, as JAX does.
    view.device = tensor.device.device_type == kDLCPU ? kHostDevice : tensor.device;
    return view;
  }

  /// View of contiguous elements, by default on the host. Every op refuses a view whose shape has a
  /// negative length, or more elements than 64 bits count.
  static TensorView of(const void* data, DLDataType dtype,
                       std::initializer_list<std::int64_t> shape,
                       DLDevice device = kHostDevice) noexcept {
    DLTensor tensor{};
    // A view carries no constness: ops state which of their arguments they write.
    tensor.data = const_cast<void*>(data);
    tensor.device = device;
    tensor.ndim = static_cast<std::int32_t>(shape.size());
    tensor.dtype = dtype;
    tensor.shape = const_cast<std::int64_t*>(shape.begin());
    return of(tensor);
  }

  /// View of contiguous numbers, by default on the host.
  template <typename T>
  requires std::is_arithmetic_v<T>
  static TensorView of(std::span<T> elements, DLDevice device = kHostDevice) noexcept {
    constexpr auto kCode = std::is_floating_point_v<T> ? kDLFloat
                           : std::is_signed_v<T>       ? kDLInt
                                                       : kDLUInt;
    return of(elements.data(),
              {static_cast<std::uint8_t>(kCode), static_cast<std::uint8_t>(8 * sizeof(T)), 1},
              {static_cast<std::int64_t>(elements.size())}, device);
  }
};

}  // namespace tessera
