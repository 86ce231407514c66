#include "core/dispatch.hpp"

#include <algorithm>
#include <cstdio>

#include "core/backend.hpp"
#include "core/cores.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"
#include "core/uncancellable.hpp"

namespace tessera::core {
std::string_view forced_implementation(const Context& context) {
  return context.implementation.empty() ? std::string_view(environment().implementation)
                                        : context.implementation;
}

Status nothing_to_run(std::string_view op, const Context& context,
                      const std::vector<ImplementationReport>& reports) {
  std::string got = "none";
  std::string why_not;
  if (find_backend(context.device.device_type, &why_not) == nullptr) got += "; " + why_not;
  for (const ImplementationReport& report : reports) {
    got += "; " + report.name + " " + report.refusal;
  }
  return refuse(StatusCode::kUnsupported, op, "implementation",
                "one in this build that can run on " + to_string(context.device), got);
}

void print_reports(std::string_view op, std::string_view shape, const Context& context,
                   const std::vector<ImplementationReport>& reports) {
  std::string line = "tessera: ";
  line.append(op).append(": ").append(shape).append(" on ").append(to_string(context.device));
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

Status check_context(std::string_view op, const Context& context) {
  if (context.num_threads < 0) {
    return refuse(StatusCode::kInvalidValue, op, "num_threads",
                  "an integer >= 1, or 0 for automatic", std::to_string(context.num_threads));
  }
  if (environment().num_threads < 0) {
    return refuse(StatusCode::kInvalidValue, op, "TESSERA_NUM_THREADS", "an integer >= 1",
                  "'" + environment().num_threads_text + "'");
  }
  std::string why_not;
  const Backend* backend = find_backend(context.device.device_type, &why_not);
  return backend == nullptr ? Status() : backend->check_context(op, context);
}

}  // namespace tessera::core
