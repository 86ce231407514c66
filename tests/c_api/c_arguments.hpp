// What the tests of every op make of a C++ call's arguments for the C API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tessera/align_block_size.hpp"
#include "tessera/batched_align_block_size.hpp"
#include "tessera/lora_align_block_size.hpp"
#include "tessera/tensor_view.hpp"
#include "tessera/tessera.h"

namespace tessera::test {

inline tessera_dtype dtype_of(DLDataType dtype) {
  switch (dtype.bits) {
    case 8:
      return dtype.code == kDLInt ? TESSERA_INT8 : TESSERA_UINT8;
    case 16:
      return dtype.code == kDLInt ? TESSERA_INT16 : TESSERA_UINT16;
    case 32:
      return dtype.code == kDLInt ? TESSERA_INT32 : TESSERA_UINT32;
    default:
      return dtype.code == kDLInt ? TESSERA_INT64 : TESSERA_UINT64;
  }
}

inline std::int32_t* int32s(const TensorView& view) {
  return static_cast<std::int32_t*>(view.data);
}

template <typename CArgs, typename Args>
void set_outputs(const Args& from, CArgs* args) {
  args->sorted_token_ids = int32s(from.sorted_token_ids);
  args->sorted_token_ids_length = from.sorted_token_ids.num_elements;
  args->expert_ids = int32s(from.expert_ids);
  args->expert_ids_length = from.expert_ids.num_elements;
  args->num_tokens_post_pad = int32s(from.num_tokens_post_pad);
}

// The C arguments for the arrays of a call, without a workspace.

inline tessera_align_block_size_args c_args(const AlignBlockSizeArgs& from) {
  tessera_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids = from.topk_ids.data;
  args.topk_ids_dtype = dtype_of(from.topk_ids.dtype);
  args.num_ids = from.topk_ids.num_elements;
  args.block_size = from.block_size;
  args.num_experts = from.num_experts;
  args.expert_map = int32s(from.expert_map);
  args.ignore_invalid_experts = from.ignore_invalid_experts;
  args.pad_sorted_ids = from.pad_sorted_ids;
  args.tail_expert = from.tail_expert;
  set_outputs(from, &args);
  args.expert_counts = int32s(from.expert_counts);
  args.num_dropped = int32s(from.num_dropped);
  args.statistics = static_cast<double*>(from.statistics.data);
  args.validation = static_cast<std::int64_t*>(from.validation.data);
  args.map_tail = from.map_tail;
  args.filtered_group = from.filtered_group;
  return args;
}

inline tessera_batched_align_block_size_args c_args(const BatchedAlignBlockSizeArgs& from) {
  tessera_batched_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.expert_num_tokens = int32s(from.expert_num_tokens);
  args.num_batches = from.expert_num_tokens.num_elements;
  args.max_tokens_per_batch = from.max_tokens_per_batch;
  args.block_size = from.block_size;
  args.tail_expert = from.tail_expert;
  set_outputs(from, &args);
  return args;
}

inline tessera_lora_align_block_size_args c_args(const LoraAlignBlockSizeArgs& from) {
  tessera_lora_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids = from.topk_ids.data;
  args.topk_ids_dtype = dtype_of(from.topk_ids.dtype);
  args.num_ids = from.topk_ids.num_elements;
  args.top_k = from.top_k;
  args.token_lora_mapping = int32s(from.token_lora_mapping);
  args.block_size = from.block_size;
  args.num_experts = from.num_experts;
  args.max_loras = from.max_loras;
  args.adapter_enabled = int32s(from.adapter_enabled);
  args.lora_ids = int32s(from.lora_ids);
  args.num_lora_ids = from.lora_ids.num_elements;
  args.expert_map = int32s(from.expert_map);
  args.pad_sorted_ids = from.pad_sorted_ids;
  args.tail_expert = from.tail_expert;
  set_outputs(from, &args);
  return args;
}

/// A struct for the sizes that a query writes.
template <typename Sizes>
Sizes empty_sizes() {
  Sizes sizes{};
  sizes.struct_size = sizeof(sizes);
  return sizes;
}

/// The functions of an op by its argument struct.
template <typename Args>
struct CFunctions;

template <>
struct CFunctions<tessera_align_block_size_args> {
  using Sizes = tessera_align_block_size_sizes;
  static constexpr auto kQuery = tessera_align_block_size_query;
  static constexpr auto kRun = tessera_align_block_size;
};

template <>
struct CFunctions<tessera_batched_align_block_size_args> {
  using Sizes = tessera_batched_align_block_size_sizes;
  static constexpr auto kQuery = tessera_batched_align_block_size_query;
  static constexpr auto kRun = tessera_batched_align_block_size;
};

template <>
struct CFunctions<tessera_lora_align_block_size_args> {
  using Sizes = tessera_lora_align_block_size_sizes;
  static constexpr auto kQuery = tessera_lora_align_block_size_query;
  static constexpr auto kRun = tessera_lora_align_block_size;
};

/// The workspace's bytes in a struct of sizes or of arguments; 0 if the op needs no workspace.
template <typename Struct>
std::size_t workspace_bytes(const Struct& of) {
  if constexpr (requires { of.workspace_bytes; }) {
    return of.workspace_bytes;
  } else {
    return 0;
  }
}

template <typename Args>
void set_workspace(std::span<std::byte> memory, Args* args) {
  if constexpr (requires { args->workspace; }) {
    args->workspace = memory.data();
    args->workspace_bytes = memory.size();
  }
}

}  // namespace tessera::test
