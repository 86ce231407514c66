// What every fallible Tessera call returns. No exception crosses the library's boundary.
#pragma once

#include <memory>
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
  Status() noexcept = default;
  Status(StatusCode code, std::string message)
      : error_(std::make_shared<const Error>(Error{code, std::move(message)})) {}

  bool ok() const noexcept { return error_ == nullptr; }
  StatusCode code() const noexcept { return ok() ? StatusCode::kOk : error_->code; }
  std::string message() const { return ok() ? std::string() : error_->message; }

 private:
  struct Error {
    StatusCode code;
    std::string message;
  };

  // A null pointer for success: the ops return a Status from every check of every call.
  std::shared_ptr<const Error> error_;
};

}  // namespace tessera
