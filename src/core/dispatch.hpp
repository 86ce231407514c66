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

/// Implementations of an op by a backend; none where that is null.
std::span<const Implementation> implementations(std::string_view op, const Backend* backend);

/// The first of these that runs the problem, or null.
const Implementation* select(std::span<const Implementation> candidates, const void* problem,
                             const Context& context);

/// What select() goes by, of every candidate.
std::vector<ImplementationReport> report(std::span<const Implementation> candidates,
                                         const void* problem, const Context& context);

/// The Status where select() finds none.
Status nothing_to_run(std::string_view op, std::span<const Implementation> candidates,
                      const void* problem, const Context& context);

/// For TESSERA_VERBOSE.
void print_reports(std::string_view op, std::string_view problem, const Context& context,
                   const std::vector<ImplementationReport>& reports);

/// An upper bound of max_threads(context) that never changes while the process lives: what a size
/// that was asked for earlier has to suffice for.
int max_possible_threads(const Context& context);

/// Host threads that a call in this context may use now, at least 1. Where neither the context nor
/// TESSERA_NUM_THREADS names a number it follows the process's affinity, and costs system calls.
int max_threads(const Context& context);

/// Fails where the context itself is malformed, whatever the op. Hands out the backend for its
/// device, or null where no backend can use that.
Status check_context(std::string_view op, const Context& context, const Backend** backend);

}  // namespace tessera::core
