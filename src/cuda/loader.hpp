// Finds the CUDA backend, a shared object of its own that lies beside the library, or nowhere.
#pragma once

#include <string>

#include "core/backend.hpp"

namespace tessera::cuda {

/// The backend, loaded at the first call; null, with the reason, where it cannot be used.
const core::Backend* load_backend(std::string* why_not);

}  // namespace tessera::cuda
