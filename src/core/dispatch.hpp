// Picks the first implementation of an op that can run, and can say why not the others.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tessera/align_block_size.hpp"

namespace tessera::core {

/// The implementation that this context or TESSERA_IMPL asks for; empty: any.
std::string_view forced_implementation(const Context& context);

/// The Status when no implementation was left.
Status nothing_to_run(std::string_view op, const Context& context,
                      const std::vector<ImplementationReport>& reports);

/// For TESSERA_VERBOSE.
void print_reports(std::string_view op, std::string_view shape, const Context& context,
                   const std::vector<ImplementationReport>& reports);

/// An upper bound of max_threads(context) that never changes while the process lives: what a size
/// that was asked for earlier has to suffice for.
int max_possible_threads(const Context& context);

/// Host threads that a call in this context may use now, at least 1. Where neither the context nor
/// TESSERA_NUM_THREADS names a number it follows the process's affinity, and costs system calls.
int max_threads(const Context& context);

/// Fails where the context itself is malformed, whatever the op.
Status check_context(std::string_view op, const Context& context);

}  // namespace tessera::core
