// New arrays of a framework on the host, made by DLPack's C functions.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>

#include "python.hpp"
#include "tessera/schema.hpp"

namespace tessera::python {

/// What DLPack passes on of a new array. Its memory follows.
struct alignas(16) NewArray {
  DLManagedTensorVersioned managed{};
  std::int64_t shape[kMaxAxes] = {};
  std::int64_t strides[kMaxAxes] = {};
};

/// A new array for an output: of the smallest size that the table allows, contiguous, and at a
/// multiple of 16 bytes. None, with or without an error of Python, where there cannot be one; where
/// it has the data type of another array, as frameworks make such an output of their own memory; or
/// where it has no elements, as frameworks differ in the strides of such an array.
inline PyObject* new_array(const DLPackExchangeAPI& exchange, const Argument& output,
                           const std::int64_t* symbols, TensorView* view) {
  if (output.same_dtype_as >= 0) return nullptr;
  const int ndim = std::max<int>(output.extents.ndim, 1);
  std::int64_t shape[kMaxAxes];
  std::int64_t bytes = output.first_dtype.bits / 8;
  for (int i = 0; i < ndim; ++i) {
    const Length& length = output.extents.lengths[i];
    shape[i] = length.symbol < 0 ? length.constant : symbols[length.symbol];
    if (shape[i] <= 0 || __builtin_mul_overflow(bytes, shape[i], &bytes)) return nullptr;
  }
  void* const memory =
      ::operator new(sizeof(NewArray) + static_cast<std::size_t>(bytes), std::nothrow);
  if (memory == nullptr) return nullptr;
  auto* const array = new (memory) NewArray;
  std::copy_n(shape, ndim, array->shape);
  std::int64_t stride = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    array->strides[i] = stride;
    stride *= shape[i];
  }
  DLTensor& tensor = array->managed.dl_tensor;
  tensor.data = array + 1;
  tensor.device = kHostDevice;
  tensor.ndim = ndim;
  tensor.dtype = output.first_dtype;
  tensor.shape = array->shape;
  tensor.strides = array->strides;
  array->managed.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  array->managed.deleter = [](DLManagedTensorVersioned* self) { ::operator delete(self); };
  *view = TensorView::of(tensor);
  void* made = nullptr;
  exchange.managed_tensor_to_py_object_no_sync(&array->managed, &made);
  return static_cast<PyObject*>(made);
}

}  // namespace tessera::python
