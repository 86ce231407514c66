// align_block_size: validates a call once, for every backend, and hands it to an implementation.
#include "tessera/align_block_size.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "core/align_block_size_implementation.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"

namespace tessera {
namespace {

using core::AlignBlockSizeImplementation;
using core::AlignBlockSizeProblem;

constexpr std::string_view kOp = "align_block_size";
constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();
constexpr DLDataType kInt32{kDLInt, 32, 1};

Status wrong_type(std::string_view argument, std::string_view expected, std::string_view got) {
  return core::refuse(StatusCode::kInvalidType, kOp, argument, expected, got);
}

Status wrong_value(std::string_view argument, std::string_view expected, std::string_view got) {
  return core::refuse(StatusCode::kInvalidValue, kOp, argument, expected, got);
}

Status check_range(std::string_view argument, std::int64_t value, std::int64_t low) {
  if (value >= low && value <= kInt32Max) return {};
  return wrong_value(argument, "an integer in [" + std::to_string(low) + ", 2147483647]",
                     std::to_string(value));
}

/// Checks the shape and computes the output sizes, all of them within int32.
Status output_sizes(const AlignBlockSizeShape& shape, AlignBlockSizeSizes* sizes) {
  if (Status s = check_range("block_size", shape.block_size, 1); !s.ok()) return s;
  if (Status s = check_range("num_experts", shape.num_experts, 1); !s.ok()) return s;
  if (Status s = check_range("topk_ids.num_elements", shape.num_ids, 0); !s.ok()) return s;

  const std::int64_t max_groups = std::min(shape.num_ids, shape.num_experts);
  // Below 2^31 + 2^62: no overflow in 64 bits.
  std::int64_t capacity = shape.num_ids + max_groups * (shape.block_size - 1);
  const std::int64_t num_blocks = (capacity + shape.block_size - 1) / shape.block_size;
  if (shape.pad_sorted_ids) capacity = num_blocks * shape.block_size;
  if (capacity > kInt32Max) {
    return wrong_value("capacity", "at most 2147483647 slots",
                       std::to_string(capacity) + " (" + std::to_string(shape.num_ids) +
                           " ids + min(ids, " + std::to_string(shape.num_experts) +
                           " experts) * (block_size " + std::to_string(shape.block_size) + " - 1)" +
                           (shape.pad_sorted_ids ? ", rounded up to whole blocks)" : ")"));
  }
  sizes->sorted_token_ids = capacity;
  sizes->expert_ids = num_blocks;
  return {};
}

bool is_integer(DLDataType dtype) {
  return (dtype.code == kDLInt || dtype.code == kDLUInt) && dtype.lanes == 1 &&
         (dtype.bits == 8 || dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64);
}

bool is_int32(DLDataType dtype) {
  return dtype.code == kInt32.code && dtype.bits == kInt32.bits && dtype.lanes == kInt32.lanes;
}

/// An array of the call by the name that its messages use.
struct NamedView {
  const char* name;
  const TensorView* view;
};

std::string dotted(const char* name, const char* property) {
  return std::string(name) + "." + property;
}

/// What holds for every array: device, contiguity, memory.
Status check_memory(const NamedView& array, const Context& context) {
  const TensorView& view = *array.view;
  if (view.device.device_type != context.device.device_type ||
      view.device.device_id != context.device.device_id) {
    return wrong_value(dotted(array.name, "device"), core::to_string(context.device),
                       core::to_string(view.device));
  }
  if (!view.contiguous) {
    return wrong_value(array.name, "a contiguous array", "a strided one");
  }
  if (view.data == nullptr && view.num_elements != 0) {
    return wrong_value(dotted(array.name, "data"), "memory for its elements", "a null pointer");
  }
  return {};
}

enum class Length { kExactly, kAtLeast };

Status check_int32_array(const NamedView& array, Length rule, std::int64_t length,
                         const Context& context) {
  if (!array.view->given()) return wrong_value(array.name, "an int32 array", "none");
  if (!is_int32(array.view->dtype)) {
    return wrong_type(dotted(array.name, "dtype"), "int32", core::to_string(array.view->dtype));
  }
  const std::int64_t got = array.view->num_elements;
  if (rule == Length::kExactly ? got != length : got < length) {
    return wrong_value(dotted(array.name, "num_elements"),
                       (rule == Length::kAtLeast ? "at least " : "") + std::to_string(length),
                       std::to_string(got));
  }
  return check_memory(array, context);
}

struct Extent {
  const char* name;
  std::uintptr_t begin;
  std::uintptr_t end;
};

Extent extent_of(const NamedView& array) {
  const auto begin = reinterpret_cast<std::uintptr_t>(array.view->data);
  const auto bytes = static_cast<std::uintptr_t>(array.view->num_elements) * array.view->dtype.bits;
  return {array.name, begin, begin + bytes / 8};
}

/// No output may share memory with another array or with the workspace.
Status check_overlap(const AlignBlockSizeArgs& args, const Context& context) {
  // Outputs first, then what is only read.
  const std::array<NamedView, 7> arrays{{{"sorted_token_ids", &args.sorted_token_ids},
                                         {"expert_ids", &args.expert_ids},
                                         {"num_tokens_post_pad", &args.num_tokens_post_pad},
                                         {"expert_counts", &args.expert_counts},
                                         {"num_dropped", &args.num_dropped},
                                         {"topk_ids", &args.topk_ids},
                                         {"expert_map", &args.expert_map}}};
  constexpr std::size_t kNumOutputs = 5;
  std::array<Extent, arrays.size() + 1> extents;
  std::size_t num_extents = 0;
  std::size_t num_outputs = 0;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    if (arrays[i].view->given() && arrays[i].view->num_elements > 0) {
      extents[num_extents++] = extent_of(arrays[i]);
    }
    if (i + 1 == kNumOutputs) num_outputs = num_extents;
  }
  if (!context.workspace.empty()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(context.workspace.data());
    extents[num_extents++] = {"workspace", begin, begin + context.workspace.size()};
  }
  for (std::size_t i = 0; i < num_outputs; ++i) {
    for (std::size_t j = i + 1; j < num_extents; ++j) {
      if (extents[i].begin < extents[j].end && extents[j].begin < extents[i].end) {
        return wrong_value(extents[i].name, "memory of its own",
                           std::string("memory shared with ") + extents[j].name);
      }
    }
  }
  return {};
}

Status check_args(const AlignBlockSizeArgs& args, const AlignBlockSizeSizes& sizes,
                  const Context& context) {
  if (Status s = check_memory({"topk_ids", &args.topk_ids}, context); !s.ok()) return s;
  if (args.expert_map.given()) {
    if (Status s = check_int32_array({"expert_map", &args.expert_map}, Length::kExactly,
                                     args.num_experts, context);
        !s.ok()) {
      return s;
    }
  }
  if (Status s = check_int32_array({"sorted_token_ids", &args.sorted_token_ids}, Length::kAtLeast,
                                   sizes.sorted_token_ids, context);
      !s.ok()) {
    return s;
  }
  if (Status s = check_int32_array({"expert_ids", &args.expert_ids}, Length::kAtLeast,
                                   sizes.expert_ids, context);
      !s.ok()) {
    return s;
  }
  if (Status s = check_int32_array({"num_tokens_post_pad", &args.num_tokens_post_pad},
                                   Length::kExactly, 1, context);
      !s.ok()) {
    return s;
  }
  if (args.expert_counts.given()) {
    if (Status s = check_int32_array({"expert_counts", &args.expert_counts}, Length::kExactly,
                                     args.num_experts, context);
        !s.ok()) {
      return s;
    }
  }
  if (args.num_dropped.given()) {
    if (Status s =
            check_int32_array({"num_dropped", &args.num_dropped}, Length::kExactly, 1, context);
        !s.ok()) {
      return s;
    }
  }
  if (context.workspace.size() < sizes.workspace_bytes) {
    return wrong_value("workspace", "at least " + std::to_string(sizes.workspace_bytes) + " bytes",
                       std::to_string(context.workspace.size()));
  }
  return check_overlap(args, context);
}

std::vector<ImplementationReport> report_implementations(const Context& context) {
  std::vector<ImplementationReport> reports;
  bool found = false;
  for (const AlignBlockSizeImplementation& candidate : core::align_block_size_implementations()) {
    ImplementationReport report{std::string(candidate.name), core::refusal(candidate, context)};
    report.selected = !found && report.refusal.empty();
    found = found || report.selected;
    reports.push_back(std::move(report));
  }
  return reports;
}

/// The first implementation that can run, or null.
const AlignBlockSizeImplementation* select(const Context& context) {
  for (const AlignBlockSizeImplementation& candidate : core::align_block_size_implementations()) {
    if (core::refusal(candidate, context).empty()) return &candidate;
  }
  return nullptr;
}

/// Everything that does not depend on the arrays.
Status prepare(const AlignBlockSizeShape& shape, const Context& context, AlignBlockSizeSizes* sizes,
               const AlignBlockSizeImplementation** selected) {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  if (Status s = output_sizes(shape, sizes); !s.ok()) return s;
  *selected = select(context);
  if (*selected == nullptr) {
    return core::nothing_to_run(kOp, context, report_implementations(context));
  }
  sizes->workspace_bytes = (*selected)->workspace_bytes(shape, context);
  return {};
}

}  // namespace

Status align_block_size_sizes(const AlignBlockSizeShape& shape, const Context& context,
                              AlignBlockSizeSizes* sizes) {
  AlignBlockSizeSizes result;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &result, &selected); !s.ok()) return s;
  *sizes = result;
  return {};
}

Status align_block_size(const AlignBlockSizeArgs& args, const Context& context) {
  if (!args.topk_ids.given()) return wrong_value("topk_ids", "an array of integers", "none");
  if (!is_integer(args.topk_ids.dtype)) {
    return wrong_type("topk_ids.dtype", "an integer type", core::to_string(args.topk_ids.dtype));
  }
  const AlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                  args.pad_sorted_ids};
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &sizes, &selected); !s.ok()) return s;
  if (Status s = check_args(args, sizes, context); !s.ok()) return s;

  if (core::environment().verbose) {
    core::print_reports(kOp,
                        std::to_string(shape.num_ids) + " ids, " +
                            std::to_string(shape.num_experts) + " experts, block_size " +
                            std::to_string(shape.block_size),
                        context, report_implementations(context));
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
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  problem.expert_counts = static_cast<std::int32_t*>(args.expert_counts.data);
  problem.num_dropped = static_cast<std::int32_t*>(args.num_dropped.data);
  return selected->run(problem, context);
}

Status explain_align_block_size(const AlignBlockSizeShape& shape, const Context& context,
                                std::vector<ImplementationReport>* reports) {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  AlignBlockSizeSizes sizes;
  if (Status s = output_sizes(shape, &sizes); !s.ok()) return s;
  *reports = report_implementations(context);
  return {};
}

}  // namespace tessera
