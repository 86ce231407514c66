// Version, backends and warm-up of this build of Tessera.
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

/// Every backend of Tessera, available or not. Empty if memory runs out.
TESSERA_API std::vector<BackendInfo> backends();

/// Does the work in advance that makes the first call on a device slow: creates its context and
/// loads the code of every kernel. No call requires it; on the CPU it does nothing. Fails with
/// kUnsupported if no backend can use the device, with kInvalidValue if there is no such device,
/// and with kRuntimeError if memory runs out.
TESSERA_API Status warmup(DLDevice device);

/// "major.minor.patch" of the library in use.
TESSERA_API const char* version() noexcept;

/// Value of TESSERA_VALIDATE, empty if it is unset or memory runs out: the default treatment of
/// invalid ids in bindings to languages with exceptions.
TESSERA_API const char* validate_default() noexcept;

/// Compiler and build type of the library in use, and the architectures of its CUDA backend, if it
/// has one.
TESSERA_API const char* build_description() noexcept;

}  // namespace tessera
