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

/// `problem` is the op's own struct: a validated call, or, but for `run`, one of which arrays may
/// be missing. Made by the template below.
struct Implementation {
  std::string_view name;  ///< "<backend>/<strategy>"
  Status (*run)(const void* problem, const Context& context);
  /// Null: it needs none.
  std::size_t (*workspace_bytes)(const void* problem, const Context& context);
  /// Fails where it leaves the problem to another; `forced`: asked for by name, it refuses only
  /// what it cannot do on this device with the code that is loaded. Null: it takes everything.
  Status (*refusal)(const void* problem, const Context& context, bool forced);
  /// How it would run the problem, in words. Null: there is nothing to tell.
  std::string (*plan)(const void* problem, const Context& context);
};

/// An implementation from functions of its own type of problem; nullptr for those it has not.
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
