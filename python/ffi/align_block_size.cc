// Python's exports of align_block_size.
#include "tessera/align_block_size.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "conversions.hpp"

namespace tessera::python {
namespace {

constexpr const char* kOp = "align_block_size";

/// All but the three outputs that every call has.
AlignBlockSizeArgs align_block_size_args(const ffi::TensorView& topk_ids,
                                         const OptionalTensor& expert_map,
                                         const OptionalTensor& expert_counts,
                                         const OptionalTensor& num_dropped, std::int64_t block_size,
                                         std::int64_t num_experts, bool ignore_invalid_experts,
                                         bool pad_sorted_ids, std::int64_t tail_expert) {
  AlignBlockSizeArgs args;
  args.topk_ids = view_of(topk_ids);
  args.block_size = block_size;
  args.num_experts = num_experts;
  args.expert_map = view_of(expert_map);
  args.ignore_invalid_experts = ignore_invalid_experts;
  args.pad_sorted_ids = pad_sorted_ids;
  args.tail_expert = int32_of(kOp, "tail_expert", tail_expert);
  args.expert_counts = view_of(expert_counts);
  args.num_dropped = view_of(num_dropped);
  return args;
}

void set_options(const OptionalTensor& statistics, const OptionalTensor& validation, bool map_tail,
                 bool filtered_group, AlignBlockSizeArgs* args) {
  args->statistics = view_of(statistics);
  args->validation = view_of(validation);
  args->map_tail = map_tail;
  args->filtered_group = filtered_group;
}

AlignBlockSizeShape shape_of(const AlignBlockSizeArgs& args) {
  return {args.topk_ids.num_elements, args.block_size, args.num_experts, args.pad_sorted_ids,
          args.filtered_group};
}

/// On a device the workspace is the caller's, and the stream the one that the framework of the
/// arrays has made current; on the host the workspace is found here. Returns 0, or, where a call on
/// a device needs a workspace and got none, its bytes: nothing has run then.
std::int64_t run(const AlignBlockSizeArgs& args, const OptionalTensor& workspace,
                 std::int64_t num_threads, const OptionalString& implementation) {
  const std::string chosen = text_of(implementation);  // outlives the context
  Context context = context_on(kOp, args.topk_ids.device, num_threads, chosen);
  std::optional<HostWorkspace> host_workspace;
  const bool is_on_host = context.device.device_type == kDLCPU;
  if (!is_on_host && workspace.has_value()) {
    context.workspace = bytes_of(*workspace);
  } else {
    AlignBlockSizeSizes sizes;
    throw_unless_ok(align_block_size_sizes(shape_of(args), context, &sizes));
    if (is_on_host) {
      context.workspace = host_workspace.emplace(kOp, sizes.workspace_bytes).span();
    } else if (sizes.workspace_bytes != 0) {
      return static_cast<std::int64_t>(sizes.workspace_bytes);
    }
  }
  context.stream = current_stream(context.device);
  throw_unless_ok(align_block_size(args, context));
  return 0;
}

std::int64_t align_block_size_with_options(
    const ffi::TensorView& topk_ids, const OptionalTensor& expert_map,
    const ffi::TensorView& sorted_token_ids, const ffi::TensorView& expert_ids,
    const ffi::TensorView& num_tokens_post_pad, const OptionalTensor& expert_counts,
    const OptionalTensor& num_dropped, const OptionalTensor& statistics,
    const OptionalTensor& validation, const OptionalTensor& workspace, std::int64_t block_size,
    std::int64_t num_experts, bool ignore_invalid_experts, bool pad_sorted_ids,
    std::int64_t tail_expert, bool map_tail, bool filtered_group, std::int64_t num_threads,
    const OptionalString& implementation) {
  AlignBlockSizeArgs args =
      align_block_size_args(topk_ids, expert_map, expert_counts, num_dropped, block_size,
                            num_experts, ignore_invalid_experts, pad_sorted_ids, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  set_options(statistics, validation, map_tail, filtered_group, &args);
  return run(args, workspace, num_threads, implementation);
}

/// The same for the most common calls: four arguments fewer save a tenth of a microsecond.
std::int64_t align_block_size(
    const ffi::TensorView& topk_ids, const OptionalTensor& expert_map,
    const ffi::TensorView& sorted_token_ids, const ffi::TensorView& expert_ids,
    const ffi::TensorView& num_tokens_post_pad, const OptionalTensor& expert_counts,
    const OptionalTensor& num_dropped, const OptionalTensor& workspace, std::int64_t block_size,
    std::int64_t num_experts, bool ignore_invalid_experts, bool pad_sorted_ids,
    std::int64_t tail_expert, std::int64_t num_threads, const OptionalString& implementation) {
  return align_block_size_with_options(
      topk_ids, expert_map, sorted_token_ids, expert_ids, num_tokens_post_pad, expert_counts,
      num_dropped, {}, {}, workspace, block_size, num_experts, ignore_invalid_experts,
      pad_sorted_ids, tail_expert, false, false, num_threads, implementation);
}

/// The same with the three outputs in one array: to take two arrays fewer across the boundary saves
/// a short call a tenth of its time.
std::int64_t align_block_size_joined_with_options(
    const ffi::TensorView& topk_ids, const OptionalTensor& expert_map,
    const ffi::TensorView& outputs, std::int64_t num_slots, std::int64_t num_blocks,
    const OptionalTensor& expert_counts, const OptionalTensor& num_dropped,
    const OptionalTensor& statistics, const OptionalTensor& validation,
    const OptionalTensor& workspace, std::int64_t block_size, std::int64_t num_experts,
    bool ignore_invalid_experts, bool pad_sorted_ids, std::int64_t tail_expert, bool map_tail,
    bool filtered_group, std::int64_t num_threads, const OptionalString& implementation) {
  AlignBlockSizeArgs args =
      align_block_size_args(topk_ids, expert_map, expert_counts, num_dropped, block_size,
                            num_experts, ignore_invalid_experts, pad_sorted_ids, tail_expert);
  set_joined_outputs(outputs, num_slots, num_blocks, &args);
  set_options(statistics, validation, map_tail, filtered_group, &args);
  return run(args, workspace, num_threads, implementation);
}

/// The same for the most common calls, which do without the rarer options.
std::int64_t align_block_size_joined(
    const ffi::TensorView& topk_ids, const OptionalTensor& expert_map,
    const ffi::TensorView& outputs, std::int64_t num_slots, std::int64_t num_blocks,
    const OptionalTensor& expert_counts, const OptionalTensor& num_dropped,
    const OptionalTensor& workspace, std::int64_t block_size, std::int64_t num_experts,
    bool ignore_invalid_experts, bool pad_sorted_ids, std::int64_t tail_expert,
    std::int64_t num_threads, const OptionalString& implementation) {
  return align_block_size_joined_with_options(
      topk_ids, expert_map, outputs, num_slots, num_blocks, expert_counts, num_dropped, {}, {},
      workspace, block_size, num_experts, ignore_invalid_experts, pad_sorted_ids, tail_expert,
      false, false, num_threads, implementation);
}

/// Writes what write_joined_sizes says, and after it the bytes of workspace on the device, to
/// `sizes`, int64[6].
void align_block_size_sizes(std::int64_t num_ids, std::int64_t block_size, std::int64_t num_experts,
                            bool pad_sorted_ids, bool filtered_group, std::int64_t device_type,
                            std::int64_t device_id, const OptionalString& implementation,
                            const ffi::TensorView& sizes) {
  AlignBlockSizeSizes found;
  throw_unless_ok(align_block_size_sizes(
      {num_ids, block_size, num_experts, pad_sorted_ids, filtered_group},
      context_on(kOp, device_of(kOp, device_type, device_id), 0, text_of(implementation)), &found));
  auto* out = static_cast<std::int64_t*>(sizes.data_ptr());
  write_joined_sizes(found.sorted_token_ids, found.expert_ids, 1, out);
  out[5] = static_cast<std::int64_t>(found.workspace_bytes);
}

std::string align_block_size_explain(std::int64_t num_ids, std::int64_t block_size,
                                     std::int64_t num_experts, bool pad_sorted_ids,
                                     std::int64_t num_threads, std::int64_t device_type,
                                     std::int64_t device_id) {
  const Context context = context_on(kOp, device_of(kOp, device_type, device_id), num_threads, "");
  std::vector<ImplementationReport> reports;
  throw_unless_ok(explain_align_block_size({num_ids, block_size, num_experts, pad_sorted_ids},
                                           context, &reports));
  return json_array(reports, [](const ImplementationReport& report) {
    return "{\"name\":" + json_string(report.name) + ",\"refusal\":" + json_string(report.refusal) +
           ",\"plan\":" + json_string(report.plan) +
           ",\"selected\":" + (report.selected ? "true" : "false") + "}";
  });
}

std::string align_block_size_check(
    const ffi::TensorView& topk_ids, const OptionalTensor& expert_map,
    const ffi::TensorView& sorted_token_ids, const ffi::TensorView& expert_ids,
    const ffi::TensorView& num_tokens_post_pad, const OptionalTensor& expert_counts,
    const OptionalTensor& num_dropped, const OptionalTensor& statistics,
    const OptionalTensor& validation, std::int64_t block_size, std::int64_t num_experts,
    bool ignore_invalid_experts, bool pad_sorted_ids, std::int64_t tail_expert, bool map_tail,
    bool filtered_group) {
  AlignBlockSizeArgs args =
      align_block_size_args(topk_ids, expert_map, expert_counts, num_dropped, block_size,
                            num_experts, ignore_invalid_experts, pad_sorted_ids, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  set_options(statistics, validation, map_tail, filtered_group, &args);
  return violations_json(contract::check_align_block_size(args));
}

std::string align_block_size_rules() { return rules_json(contract::kAlignBlockSizeRules); }

contract::AlignBlockSizeCase case_named(const ffi::String& name) {
  auto found = contract::find_case(std::string(name));
  if (!found) {
    TVM_FFI_THROW(ValueError) << "no case is named '" << std::string(name)
                              << "'; random ones are named random:SEED:MAX_IDS";
  }
  return *std::move(found);
}

std::string align_block_size_case(const ffi::String& name) {
  return contract::to_json(case_named(name));
}

void copy_to(const ffi::TensorView& out, const void* source, std::size_t bytes) {
  const std::span<std::byte> memory = bytes_of(out);
  if (memory.size() != bytes) {
    TVM_FFI_THROW(ValueError) << "expected an array of " << bytes << " bytes";
  }
  if (bytes != 0) std::memcpy(memory.data(), source, bytes);
}

void write_inputs(const contract::AlignBlockSizeCase& c, std::int64_t seed,
                  const ffi::TensorView& topk_ids, const OptionalTensor& expert_map) {
  const auto inputs = contract::make_inputs(c, static_cast<std::uint64_t>(seed));
  copy_to(topk_ids, inputs.topk_ids.data(), inputs.topk_ids.size());
  if (inputs.expert_map && expert_map.has_value()) {
    copy_to(*expert_map, inputs.expert_map->data(), 4 * inputs.expert_map->size());
  }
}

void align_block_size_case_inputs(const ffi::String& name, std::int64_t seed,
                                  const ffi::TensorView& topk_ids,
                                  const OptionalTensor& expert_map) {
  write_inputs(case_named(name), seed, topk_ids, expert_map);
}

/// Ids of a shape that is not in the table: int32[num_tokens, top_k].
void align_block_size_synthetic_ids(std::int64_t num_tokens, std::int64_t num_experts,
                                    std::int64_t top_k, bool zipf, std::int64_t seed,
                                    const ffi::TensorView& topk_ids) {
  contract::AlignBlockSizeCase c;
  c.num_tokens = num_tokens;
  c.num_experts = num_experts;
  c.top_k = top_k;
  c.distribution = zipf ? contract::IdDistribution::kZipf : contract::IdDistribution::kUniform;
  write_inputs(c, seed, topk_ids, {});
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size, align_block_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_with_options, align_block_size_with_options)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_joined, align_block_size_joined)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_joined_with_options,
                              align_block_size_joined_with_options)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_sizes, align_block_size_sizes)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_explain, align_block_size_explain)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_check, align_block_size_check)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_rules, align_block_size_rules)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_cases, contract::align_block_size_cases_json)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_case, align_block_size_case)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_case_inputs, align_block_size_case_inputs)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_block_size_synthetic_ids, align_block_size_synthetic_ids)

}  // namespace tessera::python
