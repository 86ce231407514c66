// Fuzzes tessera_lora_align_block_size on guarded memory: whatever the bytes say, the call is
// refused and writes nothing, or its outputs satisfy the contract. An input is a LoraFuzzHeader,
// then what fills the arrays of inputs, over and over.
#include <algorithm>
#include <cstring>
#include <string>

#include "fuzz_input.hpp"
#include "guarded_buffer.hpp"
#include "lora_align_block_size_checker.hpp"
#include "tessera/tessera.h"

namespace {

using tessera::TensorView;
using tessera::fuzz::extended;
using tessera::fuzz::kDtypes;
using tessera::fuzz::kMaxElements;
using tessera::fuzz::LoraFuzzHeader;
using tessera::fuzz::require;
using tessera::fuzz::Workspace;
using tessera::test::GuardedBuffer;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  LoraFuzzHeader header{};
  if (size < sizeof(header)) return 0;
  std::memcpy(&header, data, sizeof(header));
  std::size_t next = 0;
  const auto fill = [&](auto& buffer) {
    for (std::byte& value : std::as_writable_bytes(buffer.span())) {
      const std::size_t num_values = size - sizeof(header);
      value = num_values == 0 ? std::byte{} : std::byte{data[sizeof(header) + next++ % num_values]};
    }
  };

  tessera_lora_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids_dtype = header.dtype;
  args.top_k = header.top_k;
  args.num_ids = header.num_ids;
  args.block_size = header.block_size;
  args.num_experts = header.num_experts;
  args.max_loras = header.max_loras;
  args.pad_sorted_ids = header.given >> 3 & 1;
  args.tail_expert = header.tail_expert;
  tessera_lora_align_block_size_sizes sizes{};
  sizes.struct_size = sizeof(sizes);
  if (tessera_lora_align_block_size_query(&args, &sizes) != TESSERA_OK) {
    require(std::string(tessera_last_error()).starts_with("lora_align_block_size: "),
            "a refusal without its form");
    require(tessera_lora_align_block_size(&args) != TESSERA_OK,
            "the call accepts what the query refuses");
    return 0;
  }
  // The checker goes through all experts for every row.
  if (std::max({sizes.sorted_token_ids_length, sizes.expert_ids_length,
                args.max_loras * args.num_experts}) > kMaxElements) {
    return 0;
  }

  const bool known_dtype = header.dtype < std::size(kDtypes);
  const std::int64_t id_bytes = known_dtype ? kDtypes[header.dtype].bits / 8 : 1;
  GuardedBuffer<std::byte> topk_ids(args.num_ids * id_bytes);
  GuardedBuffer<std::int32_t> mapping(args.top_k < 1 ? 0 : args.num_ids / args.top_k);
  GuardedBuffer<std::int32_t> enabled(args.max_loras);
  GuardedBuffer<std::int32_t> lora_ids(header.num_lora_ids);
  GuardedBuffer<std::int32_t> expert_map(args.num_experts);
  fill(topk_ids);
  for (auto* input : {&mapping, &enabled, &lora_ids, &expert_map}) fill(*input);
  GuardedBuffer<std::int32_t> slots(extended(sizes.sorted_token_ids_length, header.sorted_extra));
  GuardedBuffer<std::int32_t> blocks(extended(sizes.expert_ids_length, header.experts_extra));
  GuardedBuffer<std::int32_t> totals(args.max_loras);
  const auto bytes_of = [](auto& buffer) { return std::as_writable_bytes(buffer.span()); };
  const auto bytes_if = [&](bool given, auto& buffer) {
    return given ? bytes_of(buffer) : std::span<std::byte>();
  };
  const std::span<std::byte> arrays[] = {bytes_of(topk_ids),
                                         bytes_of(mapping),
                                         bytes_if((header.given & 1) != 0, enabled),
                                         bytes_if((header.given & 2) != 0, lora_ids),
                                         bytes_if((header.given & 4) != 0, expert_map),
                                         bytes_of(slots),
                                         bytes_of(blocks),
                                         bytes_of(totals)};
  Workspace workspace(header.workspace, sizes.workspace_bytes, arrays);
  args.topk_ids = topk_ids.data();
  args.token_lora_mapping = mapping.data();
  if ((header.given & 1) != 0) args.adapter_enabled = enabled.data();
  if ((header.given & 2) != 0) args.lora_ids = lora_ids.data();
  if ((header.given & 4) != 0) args.expert_map = expert_map.data();
  args.num_lora_ids = header.num_lora_ids;
  args.sorted_token_ids = slots.data();
  args.sorted_token_ids_length = std::ssize(slots.span());
  args.expert_ids = blocks.data();
  args.expert_ids_length = std::ssize(blocks.span());
  args.num_tokens_post_pad = totals.data();
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  const bool good = known_dtype && workspace.is_good() && args.top_k > 0 &&
                    args.top_k <= INT32_MAX && args.num_ids % args.top_k == 0 &&
                    args.sorted_token_ids_length >= sizes.sorted_token_ids_length &&
                    args.expert_ids_length >= sizes.expert_ids_length &&
                    args.sorted_token_ids_length % args.max_loras == 0 &&
                    args.expert_ids_length % args.max_loras == 0;
  require((tessera_lora_align_block_size(&args) == TESSERA_OK) == good,
          "good arguments refused, or bad ones accepted");
  for (auto* array : {&mapping, &enabled, &lora_ids, &expert_map, &slots, &blocks, &totals}) {
    require(array->intact(), "wrote beside an array");
  }
  require(topk_ids.intact(), "wrote beside topk_ids");
  require(workspace.intact(), "wrote beside the workspace");
  if (!good) {
    require(slots.untouched() && blocks.untouched() && totals.untouched(), "a refused call wrote");
    return 0;
  }
  tessera::LoraAlignBlockSizeArgs finished;
  finished.topk_ids.data = topk_ids.data();
  finished.topk_ids.num_elements = args.num_ids;
  finished.topk_ids.dtype = kDtypes[header.dtype];
  finished.top_k = args.top_k;
  finished.token_lora_mapping = TensorView::of(mapping.span());
  if (args.adapter_enabled != nullptr) finished.adapter_enabled = TensorView::of(enabled.span());
  if (args.lora_ids != nullptr) finished.lora_ids = TensorView::of(lora_ids.span());
  if (args.expert_map != nullptr) finished.expert_map = TensorView::of(expert_map.span());
  finished.block_size = args.block_size;
  finished.num_experts = args.num_experts;
  finished.max_loras = args.max_loras;
  finished.pad_sorted_ids = args.pad_sorted_ids != 0;
  finished.tail_expert = args.tail_expert;
  finished.sorted_token_ids = TensorView::of(slots.span());
  finished.expert_ids = TensorView::of(blocks.span());
  finished.num_tokens_post_pad = TensorView::of(totals.span());
  const auto violations = tessera::contract::check_lora_align_block_size(finished);
  require(violations.empty(), violations.empty() ? "" : violations.front().message);
  return 0;
}
