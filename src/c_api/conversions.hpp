// What the C API's functions share: structs, devices and pointers turned into the C++ API's terms.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/errors.hpp"
#include "tessera/context.hpp"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"
#include "tessera/tessera.h"

namespace tessera::c_api {

/// Keeps the message for tessera_last_error() and returns the code. `out_of_memory`, which outlives
/// everything, takes the place of a message that there is no memory to keep.
tessera_status keep(Status status, const Status::Error* out_of_memory) noexcept;

/// The body of every function of the C API that returns a code. No exception leaves it.
template <typename Body>
tessera_status finish(const Status::Error* out_of_memory, Body body) noexcept {
  try {
    return keep(body(), out_of_memory);
  } catch (...) {
    return keep(Status(out_of_memory), out_of_memory);
  }
}

template <typename Body>
tessera_status finish(const core::OutOfMemory& out_of_memory, Body body) noexcept {
  return finish(out_of_memory.error(), body);
}

bool find_device(int device_type, int device_id, DLDevice* device);

inline Status wrong_value(std::string_view op, std::string_view argument, std::string_view expected,
                          const std::string& got) {
  return core::refuse(StatusCode::kInvalidValue, op, argument, expected, got);
}

/// Checks a struct of which callers know as many bytes as one of `sizes` says, one a version.
template <typename Struct, std::size_t kVersions>
Status check_struct(std::string_view op, const char* argument, const Struct* given,
                    const std::array<std::size_t, kVersions>& sizes) {
  if (given == nullptr) return wrong_value(op, argument, "a pointer", "NULL");
  if (std::find(sizes.begin(), sizes.end(), given->struct_size) == sizes.end()) {
    std::string expected;
    for (const std::size_t size : sizes) {
      expected += (expected.empty() ? "" : " or ") + std::to_string(size);
    }
    return wrong_value(op, std::string(argument) + ".struct_size", expected,
                       std::to_string(given->struct_size));
  }
  return {};
}

/// Checks a struct that is as it was in its first version.
template <typename Struct>
Status check_struct(std::string_view op, const char* argument, const Struct* given) {
  return check_struct(op, argument, given, std::array{sizeof(Struct)});
}

inline Status set_device(std::string_view op, int device_type, int device_id, Context* context) {
  if (find_device(device_type, device_id, &context->device)) return {};
  return wrong_value(op, "device_type", "a tessera_device_type", std::to_string(device_type));
}

/// Device, stream and workspace of a call.
template <typename Args>
Status make_context(std::string_view op, const Args& args, Context* context) {
  if (Status s = set_device(op, args.device_type, args.device_id, context); !s.ok()) return s;
  context->stream = args.stream;
  if (args.workspace != nullptr) {
    context->workspace = {static_cast<std::byte*>(args.workspace), args.workspace_bytes};
  }
  return {};
}

/// A view of integers of the type that a tessera_dtype names.
inline Status integer_view(std::string_view op, const char* dtype_name, const void* data, int dtype,
                           std::int64_t length, DLDevice device, TensorView* view) {
  if (dtype < TESSERA_INT8 || dtype > TESSERA_UINT64) {
    return core::refuse(StatusCode::kInvalidType, op, dtype_name, "a tessera_dtype",
                        std::to_string(dtype));
  }
  // Only read, as are the views of all inputs.
  view->data = const_cast<void*>(data);
  view->num_elements = length;
  view->dtype = dtypes::kAll[dtype].dtype;
  view->device = device;
  return {};
}

template <typename T>
TensorView view_of(const T* data, std::int64_t length, DLDevice device) {
  TensorView view = TensorView::of(std::span<const T>(data, 0));
  view.num_elements = length;
  view.device = device;
  return view;
}

template <typename T>
TensorView optional_view(const T* data, std::int64_t length, DLDevice device) {
  return data == nullptr ? TensorView{} : view_of(data, length, device);
}

}  // namespace tessera::c_api
