// What every fallible Tessera call returns. No exception crosses the library's boundary.
#pragma once

#include <string>
#include <utility>

namespace tessera {

/// The values are part of the ABI and equal those of `tessera_status` in tessera.h.
enum class StatusCode : int {
  kOk = 0,
  kInvalidType = 1,   ///< an argument has the wrong data type        (Python: TypeError)
  kInvalidValue = 2,  ///< an argument has a value outside its domain (Python: ValueError)
  kUnsupported = 3,   ///< valid, but nothing in this build can do it (Python: NotImplementedError)
  kRuntimeError = 4,  ///< the machine refused: memory, driver, launch (Python: RuntimeError)
};

/// A code and, unless it is kOk, a message "op: argument: expected ..., got ...".
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const noexcept { return code_ == StatusCode::kOk; }
  StatusCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace tessera
