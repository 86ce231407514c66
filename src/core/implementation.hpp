// One way to run an op, as a backend hands it to the dispatcher.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::core {

/// Made by implementation(). `problem` points to the op's own struct, a validated call. Its arrays
/// may be missing except in `run`.
struct Implementation {
  std::string_view name;  ///< "<backend>/<strategy>"
  Status (*run)(const void* problem, const Context& context);
  /// Null: it needs none.
  std::size_t (*workspace_bytes)(const void* problem, const Context& context);
  /// Fails if another implementation should run the problem. If `forced`, that is requested by
  /// name, it refuses only what it cannot run on this device with the code that is loaded. Null: it
  /// runs every problem.
  Status (*refusal)(const void* problem, const Context& context, bool forced);
  /// Its launch plan for the problem, as text. Null: it has none.
  std::string (*plan)(const void* problem, const Context& context);
};

/// An implementation from functions that take its own type of problem.
template <typename Problem, auto kRun, auto kWorkspaceBytes = nullptr, auto kRefusal = nullptr,
          auto kPlan = nullptr>
constexpr Implementation implementation(std::string_view name) {
  Implementation made{name,
                      [](const void* problem, const Context& context) {
                        return kRun(*static_cast<const Problem*>(problem), context);
                      },
                      nullptr, nullptr, nullptr};
  if constexpr (!std::is_null_pointer_v<decltype(kWorkspaceBytes)>) {
    made.workspace_bytes = [](const void* problem, const Context& context) -> std::size_t {
      return kWorkspaceBytes(*static_cast<const Problem*>(problem), context);
    };
  }
  if constexpr (!std::is_null_pointer_v<decltype(kRefusal)>) {
    made.refusal = [](const void* problem, const Context& context, bool forced) {
      return kRefusal(*static_cast<const Problem*>(problem), context, forced);
    };
  }
  if constexpr (!std::is_null_pointer_v<decltype(kPlan)>) {
    made.plan = [](const void* problem, const Context& context) {
      return kPlan(*static_cast<const Problem*>(problem), context);
    };
  }
  return made;
}

/// A backend's implementations of one op, fastest first, the reference last.
struct OpImplementations {
  std::string_view op;
  std::span<const Implementation> implementations;
};

}  // namespace tessera::core
