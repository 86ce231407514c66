// What this build of Tessera is and can do.
#pragma once

#include <string>
#include <vector>

#include "tessera/export.h"

namespace tessera {

struct BackendInfo {
  std::string name;  ///< "cpu", "cuda"
  bool available = false;
  std::string detail;  ///< what it runs on, or why it is unavailable
};

/// Every backend Tessera knows, available or not.
TESSERA_API std::vector<BackendInfo> backends();

/// "major.minor.patch" of the library in use.
TESSERA_API const char* version() noexcept;

/// Compiler and build type of the library in use.
TESSERA_API const char* build_description() noexcept;

}  // namespace tessera
