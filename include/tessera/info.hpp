// What this build of Tessera is and can do.
#pragma once

#include <dlpack/dlpack.h>

#include <string>
#include <vector>

#include "tessera/export.h"
#include "tessera/status.hpp"

namespace tessera {

struct BackendInfo {
  std::string name;  ///< "cpu", "cuda"
  bool available = false;
  std::string detail;  ///< what it runs on, or why it is unavailable
};

/// Every backend Tessera knows, available or not. Empty where there is no memory for the answer.
TESSERA_API std::vector<BackendInfo> backends();

/// Does ahead of time what makes the first call on a device slow: creates its context and loads the
/// code of every kernel. No call needs it. Nothing to do on the CPU. Fails with kUnsupported where
/// no backend can use the device, with kInvalidValue where there is no such device, and with
/// kRuntimeError where memory runs out.
TESSERA_API Status warmup(DLDevice device);

/// "major.minor.patch" of the library in use.
TESSERA_API const char* version() noexcept;

/// TESSERA_VALIDATE as it stands, empty where it is unset or there is no memory to read it: what
/// callers in a language with exceptions do about invalid ids unless a call says otherwise.
TESSERA_API const char* validate_default() noexcept;

/// Compiler and build type of the library in use, and what its CUDA backend was built for, if it
/// has one.
TESSERA_API const char* build_description() noexcept;

}  // namespace tessera
