// The descriptor of a backend: its implementations, and functions about its devices.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "core/implementation.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::core {

struct Backend {
  /// sizeof(Backend). The first member, so that a backend loaded at run time can be refused before
  /// any other member is read.
  std::size_t abi_size = sizeof(Backend);
  /// Version of Tessera that the backend was built with: one loaded at run time must match.
  const char* version;
  /// Why it cannot be used here; empty if it can. Must be cheap, since the first call asks.
  std::string (*unavailable)();
  /// The details that `backends()` gives if it can be used.
  std::string (*detail)();
  /// Fails if nothing can run in `context`, since the device does not exist or is too old.
  Status (*check_context)(std::string_view op, const Context& context);
  /// Does the work in advance that would make the first call slow.
  Status (*warmup)(DLDevice device);
  /// One element per op.
  std::span<const OpImplementations> ops;
};

/// The backend for a type of device, or null and the reason. Defined in registry.cpp.
const Backend* find_backend(DLDeviceType device_type, std::string* why_not);

/// Whether any op may have an implementation of this name: a backend that cannot be used here does
/// not tell which it has. Defined in registry.cpp.
bool may_exist(std::string_view implementation);

}  // namespace tessera::core
