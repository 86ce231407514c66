#include "core/op.hpp"

#include <algorithm>
#include <iterator>
#include <span>

#include "core/dispatch.hpp"
#include "core/environment.hpp"

namespace tessera::core {
namespace {

/// A call as far as it does not depend on the memory of arrays.
struct Prepared {
  std::int64_t symbols[kMaxSymbols] = {};
  alignas(std::max_align_t) std::byte problem[kMaxProblemBytes];
  std::span<const Implementation> candidates;
};

Status prepare(const Op& op, const void* args, const Context& context, Validator* check,
               Prepared* prepared) {
  const Backend* backend = nullptr;
  if (Status s = check_context(op.schema.op, context, &backend); !s.ok()) return s;
  if (!check->numbers(prepared->symbols) || !op.sizes(args, prepared->symbols, check)) {
    return check->status;
  }
  op.make_problem(args, prepared->symbols, prepared->problem);
  prepared->candidates = implementations(op.schema.op, backend);
  return {};
}

std::size_t workspace_bytes(const Implementation& selected, const Prepared& prepared,
                            const Context& context) {
  return selected.workspace_bytes == nullptr ? 0
                                             : selected.workspace_bytes(prepared.problem, context);
}

}  // namespace

Status call(const Op& op, const void* args, const Context& context,
            const WorkspaceSource* source) noexcept try {
  Validator check(op.schema, args, context);
  if (!check.giving_arrays()) return check.status;
  Prepared prepared;
  if (Status s = prepare(op, args, context, &check, &prepared); !s.ok()) return s;
  const Implementation* selected = select(prepared.candidates, prepared.problem, context);
  if (selected == nullptr) {
    return nothing_to_run(op.schema.op, prepared.candidates, prepared.problem, context);
  }
  if (!check.arrays(prepared.symbols) ||
      (op.rules != nullptr && !op.rules(args, prepared.symbols, &check))) {
    return check.status;
  }
  const std::size_t bytes = workspace_bytes(*selected, prepared, context);
  Context with_workspace = context;
  if (source != nullptr) with_workspace.workspace = source->get(source->state, bytes);
  if (!check.workspace(with_workspace.workspace, bytes) ||
      !check.no_overlap(with_workspace.workspace)) {
    return check.status;
  }
  if (environment().verbose) {
    print_reports(op.schema.op, op.describe(prepared.problem), context,
                  report(prepared.candidates, prepared.problem, context));
  }
  return selected->run(prepared.problem, with_workspace);
} catch (...) {
  return op.out_of_memory.status();
}

Status sizes(const Op& op, const void* args, const Context& context, OpSizes* sizes) noexcept try {
  Validator check(op.schema, args, context);
  Prepared prepared;
  if (Status s = prepare(op, args, context, &check, &prepared); !s.ok()) return s;
  if (!check.giving_lengths(prepared.symbols)) return check.status;
  const Implementation* selected = select(prepared.candidates, prepared.problem, context);
  if (selected == nullptr) {
    return nothing_to_run(op.schema.op, prepared.candidates, prepared.problem, context);
  }
  std::copy(std::begin(prepared.symbols), std::end(prepared.symbols), sizes->symbols);
  sizes->workspace_bytes = workspace_bytes(*selected, prepared, context);
  return {};
} catch (...) {
  return op.out_of_memory.status();
}

Status explain(const Op& op, const void* args, const Context& context,
               std::vector<ImplementationReport>* reports) noexcept try {
  Validator check(op.schema, args, context);
  Prepared prepared;
  if (Status s = prepare(op, args, context, &check, &prepared); !s.ok()) return s;
  *reports = report(prepared.candidates, prepared.problem, context);
  return {};
} catch (...) {
  return op.out_of_memory.status();
}

}  // namespace tessera::core
