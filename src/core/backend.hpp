// What a backend hands to the rest of the library: its implementations, and what a device is asked.
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
  /// sizeof(Backend): first, so that a backend loaded at run time can be refused before anything
  /// else of it is read.
  std::size_t abi_size = sizeof(Backend);
  /// Version of Tessera that the backend was built with: one loaded at run time must match.
  const char* version;
  /// Why it cannot be used here; empty if it can. Part of the first call, and so cheap.
  std::string (*unavailable)();
  /// What `backends()` tells where it can be used.
  std::string (*detail)();
  /// Fails where nothing can run in `context`: no such device, or one that is too old.
  Status (*check_context)(std::string_view op, const Context& context);
  /// Does ahead of the first call what would make that call slow.
  Status (*warmup)(DLDevice device);
  /// One element per op.
  std::span<const OpImplementations> ops;
};

/// The backend for a type of device, or null and the reason. Defined in registry.cpp.
const Backend* find_backend(DLDeviceType device_type, std::string* why_not);

}  // namespace tessera::core
