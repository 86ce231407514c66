// Loads the CUDA backend, a shared object beside the library, if there is one.
#pragma once

#include <string>

#include "core/backend.hpp"

namespace tessera::cuda {

/// The backend, which the first call loads. If it cannot be used, null, and `why_not` gets the
/// reason.
const core::Backend* load_backend(std::string* why_not);

}  // namespace tessera::cuda
