// fused_moe by an implementation of each of its two ops, for every backend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "core/fused_moe_problem.hpp"
#include "core/implementation.hpp"

namespace tessera::core {

/// `kSelection()` and `kExperts()` return an `Implementation` of select_experts and one of
/// fused_experts.
template <auto kSelection, auto kExperts>
struct FusedMoe {
  static Status run(const FusedMoeProblem& call, const Context& context) {
    FusedMoeProblem problem = call;
    Context inner = context;
    inner.workspace = problem.place_choice(context.workspace);
    if (Status s = kSelection().run(&problem.selection, inner); !s.ok()) return s;
    return kExperts().run(&problem.experts, inner);
  }

  /// The second op runs when the first has no use for the workspace any more.
  static std::size_t workspace_bytes(const FusedMoeProblem& problem, const Context& context) {
    return problem.choice_bytes() + std::max(bytes_for(kSelection(), &problem.selection, context),
                                             bytes_for(kExperts(), &problem.experts, context));
  }

  /// Every selection has the same bits, so that the experts alone decide what is preferred.
  static Status refusal(const FusedMoeProblem& problem, const Context& context, bool forced) {
    Status status = refusal_of(kExperts(), &problem.experts, context, forced);
    if (!status.ok()) return status;
    return refusal_of(kSelection(), &problem.selection, context, /*forced=*/true);
  }

  static std::string plan(const FusedMoeProblem& problem, const Context& context) {
    const Implementation experts = kExperts();
    return experts.plan == nullptr ? "" : experts.plan(&problem.experts, context);
  }

  /// Has the name of the experts' one.
  static constexpr Implementation descriptor() {
    return implementation<FusedMoeProblem, run, workspace_bytes, refusal, plan>(kExperts().name);
  }

 private:
  static std::size_t bytes_for(const Implementation& one, const void* problem,
                               const Context& context) {
    return one.workspace_bytes == nullptr ? 0 : one.workspace_bytes(problem, context);
  }

  static Status refusal_of(const Implementation& one, const void* problem, const Context& context,
                           bool forced) {
    return one.refusal == nullptr ? Status() : one.refusal(problem, context, forced);
  }
};

}  // namespace tessera::core
