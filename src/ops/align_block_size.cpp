// align_block_size: validates a call once, for every backend, and hands it to an implementation.
#include "tessera/align_block_size.hpp"

#include <cstdint>
#include <span>
#include <string>

#include "core/align_block_size_implementation.hpp"
#include "core/backend.hpp"
#include "core/dispatch.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"
#include "core/validation.hpp"
#include "ops/align_block_size_shape.hpp"

namespace tessera {
namespace {

using core::AlignBlockSizeImplementation;
using core::AlignBlockSizeProblem;
using core::Validator;

constexpr std::string_view kOp = "align_block_size";
constexpr core::OutOfMemory kOutOfMemory(kOp);
constexpr DLDataType kInt64{kDLInt, 64, 1};
constexpr DLDataType kFloat64{kDLFloat, 64, 1};

std::span<const AlignBlockSizeImplementation> implementations(const Context& context) {
  std::string why_not;
  const core::Backend* backend = core::find_backend(context.device.device_type, &why_not);
  return backend == nullptr ? std::span<const AlignBlockSizeImplementation>()
                            : backend->align_block_size;
}

/// Why not `candidate`, whether or not it comes first; empty if it runs the shape.
std::string refusal(const AlignBlockSizeImplementation& candidate, std::string_view forced,
                    const AlignBlockSizeShape& shape, const Context& context) {
  if (!forced.empty() && forced != candidate.name) {
    return "not the implementation asked for, " + std::string(forced);
  }
  if (candidate.refusal == nullptr) return {};
  // What it cannot do says more than that another is preferred.
  const char* reason = candidate.refusal(shape, context, true);
  if (reason == nullptr && forced.empty()) reason = candidate.refusal(shape, context, false);
  return reason == nullptr ? std::string() : reason;
}

std::vector<ImplementationReport> report_implementations(const AlignBlockSizeShape& shape,
                                                         const Context& context) {
  const std::string_view forced = core::forced_implementation(context);
  std::vector<ImplementationReport> reports;
  bool found = false;
  for (const AlignBlockSizeImplementation& candidate : implementations(context)) {
    ImplementationReport report;
    report.name = candidate.name;
    report.refusal = refusal(candidate, forced, shape, context);
    if (report.refusal.empty()) {
      report.selected = !found;
      found = true;
      if (candidate.plan != nullptr) report.plan = candidate.plan(shape, context);
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

/// The first implementation that runs the shape, or null.
const AlignBlockSizeImplementation* select(const AlignBlockSizeShape& shape,
                                           const Context& context) {
  const std::string_view forced = core::forced_implementation(context);
  for (const AlignBlockSizeImplementation& candidate : implementations(context)) {
    if (!forced.empty() && forced != candidate.name) continue;
    if (candidate.refusal == nullptr ||
        candidate.refusal(shape, context, !forced.empty()) == nullptr) {
      return &candidate;
    }
  }
  return nullptr;
}

/// Everything that does not depend on the arrays.
Status prepare(const AlignBlockSizeShape& shape, const Context& context, Validator* validator,
               AlignBlockSizeSizes* sizes, const AlignBlockSizeImplementation** selected) {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  if (!ops::output_sizes(shape, validator, sizes)) return validator->status;
  *selected = select(shape, context);
  if (*selected == nullptr) {
    return core::nothing_to_run(kOp, context, report_implementations(shape, context));
  }
  sizes->workspace_bytes = (*selected)->workspace_bytes(shape, context);
  return {};
}

}  // namespace

Status align_block_size_sizes(const AlignBlockSizeShape& shape, const Context& context,
                              AlignBlockSizeSizes* sizes) try {
  Validator validator(kOp, context);
  AlignBlockSizeSizes result;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &validator, &result, &selected); !s.ok()) return s;
  *sizes = result;
  return {};
} catch (...) {
  return kOutOfMemory.status();
}

Status align_block_size(const AlignBlockSizeArgs& args, const Context& context) try {
  Validator check(kOp, context);
  if (!check.integer_array("topk_ids", args.topk_ids)) return check.status;
  const AlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                  args.pad_sorted_ids, args.filtered_group};
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &check, &sizes, &selected); !s.ok()) return s;

  const core::NamedView outputs[] = {{"sorted_token_ids", args.sorted_token_ids},
                                     {"expert_ids", args.expert_ids},
                                     {"num_tokens_post_pad", args.num_tokens_post_pad},
                                     {"expert_counts", args.expert_counts},
                                     {"num_dropped", args.num_dropped},
                                     {"statistics", args.statistics},
                                     {"validation", args.validation}};
  const core::NamedView inputs[] = {{"topk_ids", args.topk_ids}, {"expert_map", args.expert_map}};
  if (!check.optional_array("expert_map", args.expert_map, Validator::kInt32, args.num_experts) ||
      !check.int32_buffer("sorted_token_ids", args.sorted_token_ids, sizes.sorted_token_ids) ||
      !check.int32_buffer("expert_ids", args.expert_ids, sizes.expert_ids) ||
      !check.int32_array("num_tokens_post_pad", args.num_tokens_post_pad, 1) ||
      !check.optional_array("expert_counts", args.expert_counts, Validator::kInt32,
                            args.num_experts) ||
      !check.optional_array("num_dropped", args.num_dropped, Validator::kInt32, 1) ||
      !check.optional_array("statistics", args.statistics, kFloat64,
                            kAlignBlockSizeNumStatistics) ||
      !check.optional_array("validation", args.validation, kInt64,
                            kAlignBlockSizeValidationLength) ||
      !check.workspace(sizes.workspace_bytes) || !check.no_overlap(outputs, inputs)) {
    return check.status;
  }

  if (core::environment().verbose) {
    core::print_reports(kOp,
                        std::to_string(shape.num_ids) + " ids, " +
                            std::to_string(shape.num_experts) + " experts, block_size " +
                            std::to_string(shape.block_size),
                        context, report_implementations(shape, context));
  }
  AlignBlockSizeProblem problem{};
  problem.topk_ids = args.topk_ids.data;
  problem.id_dtype = args.topk_ids.dtype;
  problem.num_ids = static_cast<std::int32_t>(shape.num_ids);
  problem.block_size = static_cast<std::int32_t>(shape.block_size);
  problem.num_experts = static_cast<std::int32_t>(shape.num_experts);
  problem.expert_map = static_cast<const std::int32_t*>(args.expert_map.data);
  problem.drops_remote = args.expert_map.given() && args.ignore_invalid_experts;
  problem.tail_expert = args.tail_expert;
  problem.map_tail = args.expert_map.given() && args.map_tail;
  problem.filtered_group = args.filtered_group;
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  problem.expert_counts = static_cast<std::int32_t*>(args.expert_counts.data);
  problem.num_dropped = static_cast<std::int32_t*>(args.num_dropped.data);
  problem.statistics = static_cast<double*>(args.statistics.data);
  problem.validation = static_cast<std::int64_t*>(args.validation.data);
  return selected->run(problem, context);
} catch (...) {
  return kOutOfMemory.status();
}

Status explain_align_block_size(const AlignBlockSizeShape& shape, const Context& context,
                                std::vector<ImplementationReport>* reports) try {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  Validator validator(kOp, context);
  AlignBlockSizeSizes sizes;
  if (!ops::output_sizes(shape, &validator, &sizes)) return validator.status;
  *reports = report_implementations(shape, context);
  return {};
} catch (...) {
  return kOutOfMemory.status();
}

}  // namespace tessera
