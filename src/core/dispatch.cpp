#include "core/dispatch.hpp"

#include <algorithm>
#include <cstdio>

#include "core/cores.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"
#include "core/uncancellable.hpp"

namespace tessera::core {
namespace {

/// The implementation that the context asks for, or TESSERA_IMPL where there is a choice at all, or
/// no op has such an implementation; empty: any.
std::string_view forced_name(std::span<const Implementation> candidates, const Context& context) {
  if (!context.implementation.empty()) return context.implementation;
  const std::string& asked_for = environment().implementation;
  const bool has_effect = !asked_for.empty() && (candidates.size() > 1 || !may_exist(asked_for));
  return has_effect ? std::string_view(asked_for) : std::string_view();
}

/// Why not `candidate`, whether or not it comes first; ok if it runs the problem.
Status refusal(const Implementation& candidate, std::string_view forced, const void* problem,
               const Context& context) {
  if (!forced.empty() && forced != candidate.name) {
    return Status(StatusCode::kUnsupported,
                  "not the implementation asked for, " + std::string(forced));
  }
  if (candidate.refusal == nullptr) return {};
  // What it cannot do says more than that another is preferred.
  Status reason = candidate.refusal(problem, context, true);
  if (reason.ok() && forced.empty()) reason = candidate.refusal(problem, context, false);
  return reason;
}

}  // namespace

std::span<const Implementation> implementations(std::string_view op, const Backend* backend) {
  if (backend == nullptr) return {};
  for (const OpImplementations& entry : backend->ops) {
    if (entry.op == op) return entry.implementations;
  }
  return {};
}

const Implementation* select(std::span<const Implementation> candidates, const void* problem,
                             const Context& context) {
  const std::string_view forced = forced_name(candidates, context);
  for (const Implementation& candidate : candidates) {
    if (!forced.empty() && forced != candidate.name) continue;
    if (candidate.refusal == nullptr || candidate.refusal(problem, context, !forced.empty()).ok()) {
      return &candidate;
    }
  }
  return nullptr;
}

std::vector<ImplementationReport> report(std::span<const Implementation> candidates,
                                         const void* problem, const Context& context) {
  const std::string_view forced = forced_name(candidates, context);
  std::vector<ImplementationReport> reports;
  bool found = false;
  for (const Implementation& candidate : candidates) {
    ImplementationReport one;
    one.name = candidate.name;
    one.refusal = refusal(candidate, forced, problem, context).message();
    if (one.refusal.empty()) {
      one.selected = !found;
      found = true;
      if (candidate.plan != nullptr) one.plan = candidate.plan(problem, context);
    }
    reports.push_back(std::move(one));
  }
  return reports;
}

Status nothing_to_run(std::string_view op, std::span<const Implementation> candidates,
                      const void* problem, const Context& context) {
  const std::string_view forced = forced_name(candidates, context);
  // The refusal of an op's only implementation says which argument is to blame.
  if (candidates.size() == 1 && forced.empty()) {
    return refusal(candidates[0], {}, problem, context);
  }
  const bool is_asked_by_variable = !forced.empty() && context.implementation.empty();
  const auto asked = std::ranges::find(candidates, forced, &Implementation::name);
  const bool is_known = asked != candidates.end();
  std::vector<std::string_view> others;
  for (const Implementation& candidate : candidates) {
    // Of an unknown name the message lists all, also those that cannot run.
    const bool is_listed = !is_known || refusal(candidate, candidate.name, problem, context).ok();
    if (!forced.empty() && is_listed) others.push_back(candidate.name);
  }
  if (!others.empty()) {
    std::string got(forced);
    if (is_asked_by_variable) got += ", which TESSERA_IMPL asks for";
    if (is_known) got += "; it " + refusal(*asked, forced, problem, context).message();
    return refuse(StatusCode::kUnsupported, op, "implementation", alternatives(others), got);
  }
  std::string got = "none";
  std::string why_not;
  if (find_backend(context.device.device_type, &why_not) == nullptr) got += "; " + why_not;
  if (!candidates.empty() && is_asked_by_variable) {
    got += "; TESSERA_IMPL asks for " + std::string(forced);
  }
  for (const Implementation& candidate : candidates) {
    got += "; " + std::string(candidate.name) + " ";
    got += refusal(candidate, {}, problem, context).message();
  }
  return refuse(StatusCode::kUnsupported, op, "implementation",
                "one in this build that can run on " + to_string(context.device), got);
}

void print_reports(std::string_view op, std::string_view problem, const Context& context,
                   const std::vector<ImplementationReport>& reports) {
  std::string line = "tessera: ";
  line.append(op).append(": ").append(problem).append(" on ").append(to_string(context.device));
  for (const ImplementationReport& report : reports) {
    line += report.selected ? ": runs " : "; not ";
    line += report.name;
    if (!report.refusal.empty()) line += " (" + report.refusal + ")";
    if (report.selected && !report.plan.empty()) line += " (" + report.plan + ")";
  }
  line += '\n';
  const Uncancellable guard;
  std::fputs(line.c_str(), stderr);
}

int max_possible_threads(const Context& context) {
  const int cap = environment().num_threads;
  if (context.num_threads > 0) {
    return cap > 0 ? std::min(context.num_threads, cap) : context.num_threads;
  }
  return cap > 0 ? cap : num_configured_cores();
}

int max_threads(const Context& context) {
  const int limit = max_possible_threads(context);
  const bool is_given = context.num_threads > 0 || environment().num_threads > 0;
  return is_given ? limit : std::min(limit, num_usable_cores());
}

Status check_context(std::string_view op, const Context& context, const Backend** backend) {
  if (context.num_threads < 0) {
    return refuse(StatusCode::kInvalidValue, op, "num_threads",
                  "an integer >= 1, or 0 for automatic", std::to_string(context.num_threads));
  }
  if (environment().num_threads < 0) {
    return refuse(StatusCode::kInvalidValue, op, "TESSERA_NUM_THREADS", "an integer >= 1",
                  "'" + environment().num_threads_text + "'");
  }
  std::string why_not;
  *backend = find_backend(context.device.device_type, &why_not);
  return *backend == nullptr ? Status() : (*backend)->check_context(op, context);
}

}  // namespace tessera::core
