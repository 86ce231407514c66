// lora_align_block_size: validates a call once, for every backend, and hands it on.
#include "tessera/lora_align_block_size.hpp"

#include <cstdint>
#include <string>

#include "core/backend.hpp"
#include "core/dispatch.hpp"
#include "core/errors.hpp"
#include "core/validation.hpp"
#include "ops/align_block_size_shape.hpp"

namespace tessera {
namespace {

using core::Validator;

constexpr std::string_view kOp = "lora_align_block_size";
constexpr core::OutOfMemory kOutOfMemory(kOp);

/// Everything that does not depend on the arrays.
Status prepare(const LoraAlignBlockSizeShape& shape, const Context& context, Validator* check,
               LoraAlignBlockSizeSizes* sizes,
               const core::LoraAlignBlockSizeImplementation** selected) {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  AlignBlockSizeSizes row;
  if (!ops::output_sizes({shape.num_ids, shape.block_size, shape.num_experts, shape.pad_sorted_ids},
                         check, &row) ||
      !check->in_range("max_loras", shape.max_loras, 1, kLoraAlignBlockSizeMaxLoras)) {
    return check->status;
  }
  std::string why_not;
  const core::Backend* backend = core::find_backend(context.device.device_type, &why_not);
  if (backend == nullptr) return core::nothing_to_run(kOp, context, {});
  const core::LoraAlignBlockSizeImplementation& implementation = backend->lora_align_block_size;
  if (implementation.max_experts != nullptr &&
      shape.num_experts > implementation.max_experts(context)) {
    return core::refuse(StatusCode::kUnsupported, kOp, "num_experts",
                        "at most " + std::to_string(implementation.max_experts(context)) +
                            " experts on " + core::to_string(context.device),
                        std::to_string(shape.num_experts));
  }
  *selected = &implementation;
  *sizes = {row.sorted_token_ids, row.expert_ids, implementation.workspace_bytes(shape)};
  return {};
}

/// An output of one row for each adapter.
bool good_rows(const char* name, const TensorView& view, std::int64_t min_row_length,
               std::int64_t max_loras, Validator* check) {
  return check->int32_buffer(name, view, min_row_length * max_loras) &&
         (view.num_elements % max_loras == 0 ||
          check->fail(StatusCode::kInvalidValue, std::string(name) + ".num_elements",
                      "a multiple of " + std::to_string(max_loras) + ", a row for each adapter",
                      std::to_string(view.num_elements)));
}

/// One adapter for each token.
bool good_mapping(const LoraAlignBlockSizeArgs& args, Validator* check) {
  const std::int64_t num_ids = args.topk_ids.num_elements;
  if (!check->in_range("top_k", args.top_k, 1, core::kInt32Max)) return false;
  if (num_ids % args.top_k != 0) {
    return check->fail(StatusCode::kInvalidValue, "top_k",
                       "a divisor of topk_ids.num_elements, " + std::to_string(num_ids),
                       std::to_string(args.top_k));
  }
  return check->int32_array("token_lora_mapping", args.token_lora_mapping, num_ids / args.top_k);
}

bool good_optional_buffer(const char* name, const TensorView& view, std::int64_t min_length,
                          Validator* check) {
  return !view.given() || check->int32_buffer(name, view, min_length);
}

core::LoraAlignBlockSizeProblem problem_of(const LoraAlignBlockSizeArgs& args) {
  const auto int32s = [](const TensorView& view) { return static_cast<std::int32_t*>(view.data); };
  core::LoraAlignBlockSizeProblem problem{};
  core::AlignBlockSizeProblem& row = problem.first_row;
  row.topk_ids = args.topk_ids.data;
  row.id_dtype = args.topk_ids.dtype;
  row.num_ids = static_cast<std::int32_t>(args.topk_ids.num_elements);
  row.block_size = static_cast<std::int32_t>(args.block_size);
  row.num_experts = static_cast<std::int32_t>(args.num_experts);
  row.expert_map = int32s(args.expert_map);
  row.drops_remote = args.expert_map.given();
  row.tail_expert = args.tail_expert;
  row.sorted_token_ids = int32s(args.sorted_token_ids);
  row.sorted_token_ids_length = args.sorted_token_ids.num_elements / args.max_loras;
  row.expert_ids = int32s(args.expert_ids);
  row.expert_ids_length = args.expert_ids.num_elements / args.max_loras;
  row.num_tokens_post_pad = int32s(args.num_tokens_post_pad);
  problem.top_k = static_cast<std::int32_t>(args.top_k);
  problem.max_loras = static_cast<std::int32_t>(args.max_loras);
  problem.token_lora_mapping = int32s(args.token_lora_mapping);
  problem.adapter_enabled = int32s(args.adapter_enabled);
  problem.has_lora_ids = args.lora_ids.given();
  problem.lora_ids = int32s(args.lora_ids);
  problem.num_lora_ids = args.lora_ids.num_elements;
  return problem;
}

}  // namespace

Status lora_align_block_size_sizes(const LoraAlignBlockSizeShape& shape, const Context& context,
                                   LoraAlignBlockSizeSizes* sizes) try {
  Validator check(kOp, context);
  LoraAlignBlockSizeSizes result;
  const core::LoraAlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &check, &result, &selected); !s.ok()) return s;
  *sizes = result;
  return {};
} catch (...) {
  return kOutOfMemory.status();
}

Status lora_align_block_size(const LoraAlignBlockSizeArgs& args, const Context& context) try {
  Validator check(kOp, context);
  if (!check.integer_array("topk_ids", args.topk_ids)) return check.status;
  const LoraAlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                      args.max_loras, args.pad_sorted_ids};
  LoraAlignBlockSizeSizes sizes;
  const core::LoraAlignBlockSizeImplementation* selected = nullptr;
  if (Status s = prepare(shape, context, &check, &sizes, &selected); !s.ok()) return s;

  const core::NamedView outputs[] = {{"sorted_token_ids", args.sorted_token_ids},
                                     {"expert_ids", args.expert_ids},
                                     {"num_tokens_post_pad", args.num_tokens_post_pad}};
  const core::NamedView inputs[] = {{"topk_ids", args.topk_ids},
                                    {"token_lora_mapping", args.token_lora_mapping},
                                    {"adapter_enabled", args.adapter_enabled},
                                    {"lora_ids", args.lora_ids},
                                    {"expert_map", args.expert_map}};
  if (!good_mapping(args, &check) ||
      !good_optional_buffer("adapter_enabled", args.adapter_enabled, args.max_loras, &check) ||
      !good_optional_buffer("lora_ids", args.lora_ids, 0, &check) ||
      !check.optional_array("expert_map", args.expert_map, Validator::kInt32, args.num_experts) ||
      !good_rows("sorted_token_ids", args.sorted_token_ids, sizes.sorted_token_ids, args.max_loras,
                 &check) ||
      !good_rows("expert_ids", args.expert_ids, sizes.expert_ids, args.max_loras, &check) ||
      !check.int32_array("num_tokens_post_pad", args.num_tokens_post_pad, args.max_loras) ||
      !check.workspace(sizes.workspace_bytes) || !check.no_overlap(outputs, inputs)) {
    return check.status;
  }
  return selected->run(problem_of(args), context);
} catch (...) {
  return kOutOfMemory.status();
}

}  // namespace tessera
