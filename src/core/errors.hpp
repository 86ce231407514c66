// The one form that every refusal takes.
#pragma once

#include <dlpack/dlpack.h>

#include <string>
#include <string_view>

#include "tessera/status.hpp"

namespace tessera::core {

/// "op: argument: expected <expected>, got <got>"
Status refuse(StatusCode code, std::string_view op, std::string_view argument,
              std::string_view expected, std::string_view got);

std::string to_string(DLDataType dtype);  ///< "int32", "float16", "bool"
std::string to_string(DLDevice device);   ///< "cpu", "cuda:1"

}  // namespace tessera::core
