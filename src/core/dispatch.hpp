// Picks the first implementation of an op that runs a problem, and can say why not the others.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.hpp"
#include "core/implementation.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::core {

/// The backend's implementations of an op; empty if `backend` is null.
std::span<const Implementation> implementations(std::string_view op, const Backend* backend);

/// The first of these that runs the problem, or null.
const Implementation* select(std::span<const Implementation> candidates, const void* problem,
                             const Context& context);

/// Why select() takes or refuses each candidate.
std::vector<ImplementationReport> report(std::span<const Implementation> candidates,
                                         const void* problem, const Context& context);

/// The status of a call for which select() finds no implementation.
Status nothing_to_run(std::string_view op, std::span<const Implementation> candidates,
                      const void* problem, const Context& context);

/// Prints one line to stderr, for TESSERA_VERBOSE.
void print_reports(std::string_view op, std::string_view problem, const Context& context,
                   const std::vector<ImplementationReport>& reports);

/// An upper bound of max_threads(context) that never changes while the process lives. A workspace
/// whose size was queried earlier must suffice for this many threads.
int max_possible_threads(const Context& context);

/// Host threads that a call in this context may use now, at least 1. If neither the context nor
/// TESSERA_NUM_THREADS gives a number, it follows the process's affinity, and makes system calls.
int max_threads(const Context& context);

/// Fails if the context itself is malformed, whatever the op. Sets `backend` to the backend for its
/// device, or to null if no backend can use the device.
Status check_context(std::string_view op, const Context& context, const Backend** backend);

}  // namespace tessera::core
