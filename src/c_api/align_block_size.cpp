// align_block_size in the C API: builds views from pointers and lengths for the C++ one.
#include "tessera/align_block_size.hpp"

#include <array>
#include <cstddef>
#include <cstring>

#include "c_api/conversions.hpp"

namespace {

using namespace tessera::c_api;
using tessera::Status;

constexpr const char* kOp = "align_block_size";
constexpr tessera::core::OutOfMemory kOutOfMemory(kOp);

static_assert(TESSERA_ALIGN_BLOCK_SIZE_NUM_STATISTICS == tessera::kAlignBlockSizeNumStatistics);
static_assert(TESSERA_ALIGN_BLOCK_SIZE_VALIDATION_LENGTH ==
              tessera::kAlignBlockSizeValidationLength);

/// Bytes of the struct in every version of the API, the first field of the next where it ends. A
/// longer one would carry fields that this library cannot honour.
constexpr std::array kArgsSizes{offsetof(tessera_align_block_size_args, statistics),
                                sizeof(tessera_align_block_size_args)};

/// Points `given` to arguments that have every field: where the caller does not know all of them,
/// to a copy with zeros in the others.
Status complete_args(const tessera_align_block_size_args** given,
                     tessera_align_block_size_args* copy) {
  if (Status s = check_struct(kOp, "args", *given, kArgsSizes); !s.ok()) return s;
  if ((*given)->struct_size == sizeof(*copy)) return {};
  *copy = {};
  std::memcpy(copy, *given, (*given)->struct_size);
  *given = copy;
  return {};
}

Status query(const tessera_align_block_size_args* args, tessera_align_block_size_sizes* sizes) {
  tessera_align_block_size_args copy;
  if (Status s = complete_args(&args, &copy); !s.ok()) return s;
  if (Status s = check_struct(kOp, "sizes", sizes); !s.ok()) return s;
  tessera::Context context;
  if (Status s = make_context(kOp, *args, &context); !s.ok()) return s;
  context.num_threads = args->num_threads;
  tessera::AlignBlockSizeSizes result;
  Status status =
      tessera::align_block_size_sizes({args->num_ids, args->block_size, args->num_experts,
                                       args->pad_sorted_ids != 0, args->filtered_group != 0},
                                      context, &result);
  if (status.ok()) {
    sizes->sorted_token_ids_length = result.sorted_token_ids;
    sizes->expert_ids_length = result.expert_ids;
    sizes->workspace_bytes = result.workspace_bytes;
  }
  return status;
}

Status run(const tessera_align_block_size_args* args) {
  tessera_align_block_size_args copy;
  if (Status s = complete_args(&args, &copy); !s.ok()) return s;
  tessera::Context context;
  if (Status s = make_context(kOp, *args, &context); !s.ok()) return s;
  context.num_threads = args->num_threads;
  const DLDevice device = context.device;
  tessera::AlignBlockSizeArgs call;
  if (Status s = integer_view(kOp, "topk_ids_dtype", args->topk_ids, args->topk_ids_dtype,
                              args->num_ids, device, &call.topk_ids);
      !s.ok()) {
    return s;
  }
  call.block_size = args->block_size;
  call.num_experts = args->num_experts;
  call.expert_map = optional_view(args->expert_map, args->num_experts, device);
  call.ignore_invalid_experts = args->ignore_invalid_experts != 0;
  call.pad_sorted_ids = args->pad_sorted_ids != 0;
  call.tail_expert = args->tail_expert;
  call.map_tail = args->map_tail != 0;
  call.filtered_group = args->filtered_group != 0;
  call.sorted_token_ids = view_of(args->sorted_token_ids, args->sorted_token_ids_length, device);
  call.expert_ids = view_of(args->expert_ids, args->expert_ids_length, device);
  call.num_tokens_post_pad = view_of(args->num_tokens_post_pad, 1, device);
  call.expert_counts = optional_view(args->expert_counts, args->num_experts, device);
  call.num_dropped = optional_view(args->num_dropped, 1, device);
  call.statistics =
      optional_view(args->statistics, TESSERA_ALIGN_BLOCK_SIZE_NUM_STATISTICS, device);
  call.validation =
      optional_view(args->validation, TESSERA_ALIGN_BLOCK_SIZE_VALIDATION_LENGTH, device);
  return tessera::align_block_size(call, context);
}

}  // namespace

extern "C" {

tessera_status tessera_align_block_size_query(const tessera_align_block_size_args* args,
                                              tessera_align_block_size_sizes* sizes) {
  return finish(kOutOfMemory, [&] { return query(args, sizes); });
}

tessera_status tessera_align_block_size(const tessera_align_block_size_args* args) {
  return finish(kOutOfMemory, [&] { return run(args); });
}

}  // extern "C"
