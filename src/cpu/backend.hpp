// The CPU as a backend.
#pragma once

#include "core/backend.hpp"

namespace tessera::cpu {

extern const core::Backend kBackend;

}  // namespace tessera::cpu
