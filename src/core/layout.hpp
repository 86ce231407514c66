// Which strides an array may have, and the memory that it then spans.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "tessera/schema.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::core {

/// Whether an axis has no elements, or a negative length, which is refused elsewhere. So are more
/// axes than a view describes.
inline bool has_empty_axis(const TensorView& view) {
  for (int i = 0; i < std::min<int>(view.ndim, kMaxAxes); ++i) {
    if (view.shape[i] <= 0) return true;
  }
  return false;
}

inline bool is_empty(const Argument& argument, const TensorView& view) {
  return argument.extents.ndim == 0 ? view.num_elements == 0 : has_empty_axis(view);
}

/// The stride of an axis as implementations take it: 0 where it never is to address anything, of an
/// axis with a single element and of an array without elements, whose memory may be null.
inline std::int64_t stride_of(const TensorView& view, int axis) {
  return view.shape[axis] > 1 && !has_empty_axis(view) ? view.strides[axis] : 0;
}

/// Whether the last axis is contiguous, and every other axis steps over all that the next ones
/// hold: no two elements share memory.
inline bool has_rows_apart(const TensorView& view) {
  if (has_empty_axis(view)) return true;  // of any strides: frameworks differ
  __extension__ using Wide = __int128;
  Wide next = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    const bool is_last = i == view.ndim - 1;
    if (view.shape[i] > 1 && (is_last ? view.strides[i] != 1 : view.strides[i] < next)) {
      return false;
    }
    // The stride of an axis with a single element is never used to address anything.
    if (view.shape[i] > 1) next = Wide{view.strides[i]} * view.shape[i];
    if (next > std::numeric_limits<std::int64_t>::max()) return false;
  }
  return true;
}

/// The same memory, with the last two axes exchanged.
inline TensorView transposed(const TensorView& view) {
  TensorView exchanged = view;
  std::swap(exchanged.shape[view.ndim - 2], exchanged.shape[view.ndim - 1]);
  std::swap(exchanged.strides[view.ndim - 2], exchanged.strides[view.ndim - 1]);
  return exchanged;
}

inline bool has_contiguous_axes(const TensorView& view) {
  if (has_empty_axis(view)) return true;
  std::int64_t step = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    if (view.shape[i] > 1 && view.strides[i] != step) return false;
    if (__builtin_mul_overflow(step, view.shape[i], &step)) return false;
  }
  return true;
}

inline bool has_layout(const Argument& argument, const TensorView& view) {
  if (argument.extents.ndim == 0) return view.contiguous;
  switch (argument.layout) {
    case Argument::Layout::kContiguous:
      return has_contiguous_axes(view);
    case Argument::Layout::kRowsApart:
      return has_rows_apart(view);
    case Argument::Layout::kRowsApartOrTransposed:
      return has_rows_apart(view) || has_rows_apart(transposed(view));
  }
  return false;
}

/// The number of elements from the first to the last, gaps included; false if it exceeds 64 bits.
inline bool elements_spanned(const Argument& argument, const TensorView& view,
                             std::uint64_t* spanned) {
  if (argument.extents.ndim == 0) {
    *spanned = static_cast<std::uint64_t>(view.num_elements);
    return true;
  }
  *spanned = 1;
  for (int i = 0; i < view.ndim; ++i) {
    if (view.shape[i] <= 1) continue;
    std::uint64_t step = 0;
    if (__builtin_mul_overflow(static_cast<std::uint64_t>(view.shape[i] - 1),
                               static_cast<std::uint64_t>(view.strides[i]), &step) ||
        __builtin_add_overflow(*spanned, step, spanned)) {
      return false;
    }
  }
  return true;
}

}  // namespace tessera::core
