#include "core/validation.hpp"

#include <string>

#include "core/errors.hpp"

namespace tessera::core {
namespace {

std::string bytes(std::size_t count) { return std::to_string(count) + " bytes"; }

}  // namespace

bool Validator::fail(StatusCode code, std::string_view argument, std::string_view expected,
                     std::string_view got) {
  status = refuse(code, op_, argument, expected, got);
  return false;
}

bool Validator::fail_range(const char* name, std::int64_t value, std::int64_t low,
                           std::int64_t high) {
  return fail(StatusCode::kInvalidValue, name,
              "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]",
              std::to_string(value));
}

bool Validator::fail_integer(const char* name, const TensorView& view) {
  if (!view.given()) return fail(StatusCode::kInvalidValue, name, "an array of integers", "none");
  return fail(StatusCode::kInvalidType, std::string(name) + ".dtype", "an integer type",
              to_string(view.dtype));
}

bool Validator::fail_dtype(const char* name, const TensorView& view, DLDataType dtype) {
  const std::string expected = to_string(dtype);
  if (!view.given()) {
    return fail(StatusCode::kInvalidValue, name, "an " + expected + " array", "none");
  }
  return fail(StatusCode::kInvalidType, std::string(name) + ".dtype", expected,
              to_string(view.dtype));
}

bool Validator::fail_length(const char* name, const TensorView& view, const char* bound,
                            std::int64_t length) {
  return fail(StatusCode::kInvalidValue, std::string(name) + ".num_elements",
              bound + std::to_string(length), std::to_string(view.num_elements));
}

bool Validator::fail_memory(const char* name, const TensorView& view) {
  if (view.device.device_type != context_.device.device_type ||
      view.device.device_id != context_.device.device_id) {
    return fail(StatusCode::kInvalidValue, std::string(name) + ".device",
                to_string(context_.device), to_string(view.device));
  }
  if (!view.contiguous) {
    return fail(StatusCode::kInvalidValue, name, "a contiguous array", "a strided one");
  }
  const std::string data = std::string(name) + ".data";
  if (view.data == nullptr) {
    return fail(StatusCode::kInvalidValue, data, "memory for its elements", "a null pointer");
  }
  return fail(StatusCode::kInvalidValue, data, "memory aligned to " + bytes(element_bytes(view)),
              "an address " + std::to_string(bytes_past_alignment(view)) + " past such a boundary");
}

bool Validator::fail_workspace(std::size_t min_bytes) {
  return fail(StatusCode::kInvalidValue, "workspace", "at least " + bytes(min_bytes),
              std::to_string(context_.workspace.size()));
}

bool Validator::fail_end(const char* name, const TensorView& view) {
  return fail(StatusCode::kInvalidValue, std::string(name) + ".num_elements",
              "an end within the address space", std::to_string(view.num_elements));
}

bool Validator::fail_workspace_end() {
  return fail(StatusCode::kInvalidValue, "workspace", "an end within the address space",
              bytes(context_.workspace.size()));
}

bool Validator::fail_overlap(const char* written, const char* other) {
  return fail(StatusCode::kInvalidValue, written, "memory of its own",
              std::string("memory shared with ") + other);
}

}  // namespace tessera::core
