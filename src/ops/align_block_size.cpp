// align_block_size: validates a call once, for every backend, and hands it to an implementation.
#include "tessera/align_block_size.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>

#include "core/align_block_size_implementation.hpp"
#include "core/backend.hpp"
#include "core/dispatch.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"

namespace tessera {
namespace {

using core::AlignBlockSizeImplementation;
using core::AlignBlockSizeProblem;

constexpr std::string_view kOp = "align_block_size";
constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

bool is_integer(DLDataType dtype) {
  return (dtype.code == kDLInt || dtype.code == kDLUInt) && dtype.lanes == 1 &&
         (dtype.bits == 8 || dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64);
}

bool is_int32(DLDataType dtype) {
  return dtype.code == kDLInt && dtype.bits == 32 && dtype.lanes == 1;
}

/// Of a view whose dtype has been checked: a power of two.
std::size_t element_bytes(const TensorView& view) { return view.dtype.bits / 8U; }

std::size_t bytes_past_alignment(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) & (element_bytes(view) - 1);
}

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// The checks of one call. Each returns true, or leaves its message in `status`: a call passes some
/// twenty of them, too many to hand a Status through every one.
class Validator {
 public:
  explicit Validator(const Context& context) : context_(context) {}

  /// Checks the shape and computes the output sizes, all of them within int32.
  bool output_sizes(const AlignBlockSizeShape& shape, AlignBlockSizeSizes* sizes) {
    if (!in_range("block_size", shape.block_size, 1, kInt32Max) ||
        !in_range("num_experts", shape.num_experts, 1, kAlignBlockSizeMaxExperts) ||
        !in_range("topk_ids.num_elements", shape.num_ids, 0, kInt32Max)) {
      return false;
    }
    const std::int64_t max_groups = std::min(shape.num_ids, shape.num_experts);
    // Below 2^31 + 2^62: no overflow in 64 bits.
    std::int64_t capacity = shape.num_ids + max_groups * (shape.block_size - 1);
    const std::int64_t num_blocks = div_up(capacity, shape.block_size);
    if (shape.pad_sorted_ids) capacity = num_blocks * shape.block_size;
    sizes->sorted_token_ids = capacity;
    sizes->expert_ids = num_blocks;
    return capacity <= kInt32Max || fail_capacity(shape, capacity);
  }

  bool ids(const TensorView& view) {
    return (is_integer(view.dtype) || fail_ids(view)) && good_memory("topk_ids", view);
  }

  bool int32_array(const char* name, const TensorView& view, std::int64_t length) {
    return good_int32(name, view) &&
           (view.num_elements == length || fail_length(name, view, "", length)) &&
           good_memory(name, view);
  }

  bool int32_buffer(const char* name, const TensorView& view, std::int64_t min_length) {
    return good_int32(name, view) &&
           (view.num_elements >= min_length || fail_length(name, view, "at least ", min_length)) &&
           good_memory(name, view);
  }

  bool workspace(std::size_t min_bytes) {
    return context_.workspace.size() >= min_bytes || fail_workspace(min_bytes);
  }

  /// No output may share memory with another array or with the workspace.
  bool no_overlap(const AlignBlockSizeArgs& args) {
    std::array<Extent, 8> extents;
    std::size_t n = 0;
    const auto add = [&](const char* name, const void* data, std::size_t bytes) {
      const auto begin = reinterpret_cast<std::uintptr_t>(data);
      extents[n] = {name, begin, begin + bytes};
      n += bytes != 0 ? 1 : 0;
    };
    const auto add_view = [&](const char* name, const TensorView& view) {
      add(name, view.data, static_cast<std::size_t>(view.num_elements) * element_bytes(view));
    };
    add_view("sorted_token_ids", args.sorted_token_ids);
    add_view("expert_ids", args.expert_ids);
    add_view("num_tokens_post_pad", args.num_tokens_post_pad);
    add_view("expert_counts", args.expert_counts);
    add_view("num_dropped", args.num_dropped);
    const std::size_t num_outputs = n;
    add_view("topk_ids", args.topk_ids);
    add_view("expert_map", args.expert_map);
    add("workspace", context_.workspace.data(), context_.workspace.size());
    for (std::size_t i = 0; i < num_outputs; ++i) {
      for (std::size_t j = i + 1; j < n; ++j) {
        if (extents[i].begin < extents[j].end && extents[j].begin < extents[i].end) {
          return fail_overlap(extents[i].name, extents[j].name);
        }
      }
    }
    return true;
  }

  Status status;

 private:
  struct Extent {
    const char* name;
    std::uintptr_t begin;
    std::uintptr_t end;
  };

  bool in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    return (value >= low && value <= high) || fail_range(name, value, low, high);
  }

  bool good_int32(const char* name, const TensorView& view) {
    return is_int32(view.dtype) || fail_int32(name, view);
  }

  /// What holds for every array: device, contiguity, memory, alignment to its element size.
  bool good_memory(const char* name, const TensorView& view) {
    const bool is_good = view.device.device_type == context_.device.device_type &&
                         view.device.device_id == context_.device.device_id && view.contiguous &&
                         (view.data != nullptr || view.num_elements == 0) &&
                         bytes_past_alignment(view) == 0;
    return is_good || fail_memory(name, view);
  }

  // What builds messages stays out of line, so that the checks themselves are inlined.
#define TESSERA_COLD [[gnu::cold, gnu::noinline]]

  TESSERA_COLD bool fail(StatusCode code, std::string_view argument, std::string_view expected,
                         std::string_view got) {
    status = core::refuse(code, kOp, argument, expected, got);
    return false;
  }

  TESSERA_COLD bool fail_value(std::string_view argument, std::string_view expected,
                               std::string_view got) {
    return fail(StatusCode::kInvalidValue, argument, expected, got);
  }

  TESSERA_COLD bool fail_range(const char* name, std::int64_t value, std::int64_t low,
                               std::int64_t high) {
    return fail_value(name,
                      "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]",
                      std::to_string(value));
  }

  TESSERA_COLD bool fail_capacity(const AlignBlockSizeShape& shape, std::int64_t capacity) {
    return fail_value("capacity", "at most 2147483647 slots",
                      std::to_string(capacity) + " (" + std::to_string(shape.num_ids) +
                          " ids + min(ids, " + std::to_string(shape.num_experts) +
                          " experts) * (block_size " + std::to_string(shape.block_size) + " - 1)" +
                          (shape.pad_sorted_ids ? ", rounded up to whole blocks)" : ")"));
  }

  TESSERA_COLD bool fail_ids(const TensorView& view) {
    if (!view.given()) return fail_value("topk_ids", "an array of integers", "none");
    return fail(StatusCode::kInvalidType, "topk_ids.dtype", "an integer type",
                core::to_string(view.dtype));
  }

  TESSERA_COLD bool fail_int32(const char* name, const TensorView& view) {
    if (!view.given()) return fail_value(name, "an int32 array", "none");
    return fail(StatusCode::kInvalidType, std::string(name) + ".dtype", "int32",
                core::to_string(view.dtype));
  }

  TESSERA_COLD bool fail_length(const char* name, const TensorView& view, const char* bound,
                                std::int64_t length) {
    return fail_value(std::string(name) + ".num_elements", bound + std::to_string(length),
                      std::to_string(view.num_elements));
  }

  TESSERA_COLD bool fail_memory(const char* name, const TensorView& view) {
    if (view.device.device_type != context_.device.device_type ||
        view.device.device_id != context_.device.device_id) {
      return fail_value(std::string(name) + ".device", core::to_string(context_.device),
                        core::to_string(view.device));
    }
    if (!view.contiguous) return fail_value(name, "a contiguous array", "a strided one");
    const std::string data = std::string(name) + ".data";
    if (view.data == nullptr) return fail_value(data, "memory for its elements", "a null pointer");
    return fail_value(
        data, "memory aligned to " + std::to_string(element_bytes(view)) + " bytes",
        "an address " + std::to_string(bytes_past_alignment(view)) + " past such a boundary");
  }

  TESSERA_COLD bool fail_workspace(std::size_t min_bytes) {
    return fail_value("workspace", "at least " + std::to_string(min_bytes) + " bytes",
                      std::to_string(context_.workspace.size()));
  }

  TESSERA_COLD bool fail_overlap(const char* output, const char* other) {
    return fail_value(output, "memory of its own", std::string("memory shared with ") + other);
  }
#undef TESSERA_COLD

  const Context& context_;
};

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
  if (!validator->output_sizes(shape, sizes)) return validator->status;
  *selected = select(shape, context);
  if (*selected == nullptr) {
    return core::nothing_to_run(kOp, context, report_implementations(shape, context));
  }
  sizes->workspace_bytes = (*selected)->workspace_bytes(shape, context);
  return {};
}

}  // namespace

Status align_block_size_sizes(const AlignBlockSizeShape& shape, const Context& context,
                              AlignBlockSizeSizes* sizes) {
  Validator validator(context);
  AlignBlockSizeSizes result;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &validator, &result, &selected); !s.ok()) return s;
  *sizes = result;
  return {};
}

Status align_block_size(const AlignBlockSizeArgs& args, const Context& context) {
  Validator check(context);
  if (!check.ids(args.topk_ids)) return check.status;
  const AlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                  args.pad_sorted_ids};
  AlignBlockSizeSizes sizes;
  const AlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &check, &sizes, &selected); !s.ok()) return s;

  const auto absent_or_int32 = [&](const char* name, const TensorView& view, std::int64_t length) {
    return !view.given() || check.int32_array(name, view, length);
  };
  if (!absent_or_int32("expert_map", args.expert_map, args.num_experts) ||
      !check.int32_buffer("sorted_token_ids", args.sorted_token_ids, sizes.sorted_token_ids) ||
      !check.int32_buffer("expert_ids", args.expert_ids, sizes.expert_ids) ||
      !check.int32_array("num_tokens_post_pad", args.num_tokens_post_pad, 1) ||
      !absent_or_int32("expert_counts", args.expert_counts, args.num_experts) ||
      !absent_or_int32("num_dropped", args.num_dropped, 1) ||
      !check.workspace(sizes.workspace_bytes) || !check.no_overlap(args)) {
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
  Validator validator(context);
  AlignBlockSizeSizes sizes;
  if (!validator.output_sizes(shape, &sizes)) return validator.status;
  *reports = report_implementations(shape, context);
  return {};
}

}  // namespace tessera
