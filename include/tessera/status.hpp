// Every fallible Tessera call returns a Status. No exception crosses the library's boundary: a call
// that runs out of memory fails with kRuntimeError, as "op: memory: expected ..., got ...".
#pragma once

#include <memory>
#include <string>
#include <utility>

namespace tessera {

/// The values are part of the ABI and equal the values of `tessera_status` in tessera.h.
enum class StatusCode : int {
  kOk = 0,
  kInvalidType = 1,   ///< an argument has the wrong data type        (Python: TypeError)
  kInvalidValue = 2,  ///< an argument has a value outside its domain (Python: ValueError)
  kUnsupported = 3,   ///< valid, but nothing in this build can do it (Python: NotImplementedError)
  kRuntimeError = 4,  ///< runtime failure: memory, driver, launch    (Python: RuntimeError)
};

/// A code and, unless it is kOk, a message "op: argument: expected ..., got ...".
class [[nodiscard]] Status {
 public:
  struct Error {
    StatusCode code;
    const char* message;
  };

  Status() noexcept = default;
  Status(StatusCode code, std::string message)
      : error_(std::make_shared<const OwnedError>(code, std::move(message))) {}

  /// Refers to an error that outlives this Status and its copies, and so allocates nothing.
  explicit Status(const Error* error) noexcept : error_(std::shared_ptr<const Error>(), error) {}

  bool ok() const noexcept { return error_ == nullptr; }
  StatusCode code() const noexcept { return ok() ? StatusCode::kOk : error_->code; }
  std::string message() const { return c_message(); }

  /// The same without a copy: valid while this Status or a copy of it is.
  const char* c_message() const noexcept { return ok() ? "" : error_->message; }

 private:
  struct OwnedError : Error {
    OwnedError(StatusCode code, std::string text) : Error{code, nullptr}, memory(std::move(text)) {
      message = memory.c_str();
    }

    std::string memory;
  };

  // A null pointer for success, which is cheap: every validation step of every call returns one.
  std::shared_ptr<const Error> error_;
};

}  // namespace tessera
