// Construction of error messages; all have the same form.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "tessera/status.hpp"

namespace tessera::core {

/// "op: argument: expected <expected>, got <got>"
Status refuse(StatusCode code, std::string_view op, std::string_view argument,
              std::string_view expected, std::string_view got);

/// The status that a public function of `op` returns instead of an exception: all exceptions mean
/// that memory ran out. A constant, so that returning it allocates nothing.
class OutOfMemory {
 public:
  explicit constexpr OutOfMemory(std::string_view op) : error_{StatusCode::kRuntimeError, text_} {
    append(op);
    append(": memory: expected enough to finish the call, got an allocation that failed");
  }
  OutOfMemory(const OutOfMemory&) = delete;
  OutOfMemory& operator=(const OutOfMemory&) = delete;

  Status status() const noexcept { return Status(&error_); }
  constexpr const Status::Error* error() const noexcept { return &error_; }

 private:
  constexpr void append(std::string_view part) {
    for (const char c : part) text_[length_++] = c;
  }

  char text_[128] = {};
  std::size_t length_ = 0;
  Status::Error error_;
};

/// "a, b or c"
std::string alternatives(std::span<const std::string_view> names);

std::string to_string(DLDataType dtype);  ///< "int32", "float16", "bool"
std::string to_string(DLDevice device);   ///< "cpu", "cuda:1"
std::string to_string(float value);       ///< the shortest that reads back: "0.1", "1e-20", "nan"

}  // namespace tessera::core
