// Fuzzes tessera_batched_align_block_size on guarded memory: whatever the bytes say, the call is
// refused and writes nothing, or its outputs satisfy the contract. An input is a Header, then the
// counts.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "batched_align_block_size_checker.hpp"
#include "fuzz_input.hpp"
#include "guarded_buffer.hpp"
#include "tessera/tessera.h"

namespace {

using tessera::TensorView;
using tessera::fuzz::extended;
using tessera::fuzz::kMaxElements;
using tessera::fuzz::require;
using tessera::test::GuardedBuffer;

struct Header {
  std::int64_t max_tokens_per_batch;
  std::int64_t block_size;
  std::int32_t tail_expert;
  std::int16_t sorted_extra;  ///< elements beyond the smallest legal size; negative: too short
  std::int16_t experts_extra;
};
static_assert(sizeof(Header) == 24, "no padding: inputs are the bytes of the struct");

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Header header{};
  if (size < sizeof(header)) return 0;
  std::memcpy(&header, data, sizeof(header));
  std::vector<std::int32_t> given((size - sizeof(header)) / sizeof(std::int32_t));
  if (!given.empty()) std::memcpy(given.data(), data + sizeof(header), 4 * given.size());
  GuardedBuffer<std::int32_t> counts{std::span<const std::int32_t>(given)};

  tessera_batched_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.expert_num_tokens = counts.data();
  args.num_batches = std::ssize(given);
  args.max_tokens_per_batch = header.max_tokens_per_batch;
  args.block_size = header.block_size;
  args.tail_expert = header.tail_expert;
  tessera_batched_align_block_size_sizes sizes{};
  sizes.struct_size = sizeof(sizes);
  if (tessera_batched_align_block_size_query(&args, &sizes) != TESSERA_OK) {
    require(std::string(tessera_last_error()).starts_with("batched_align_block_size: "),
            "a refusal without its form");
    require(tessera_batched_align_block_size(&args) != TESSERA_OK,
            "the call accepts what the query refuses");
    return 0;
  }
  if (sizes.sorted_token_ids_length > kMaxElements) return 0;

  GuardedBuffer<std::int32_t> slots(extended(sizes.sorted_token_ids_length, header.sorted_extra));
  GuardedBuffer<std::int32_t> blocks(extended(sizes.expert_ids_length, header.experts_extra));
  GuardedBuffer<std::int32_t> total(1);
  args.sorted_token_ids = slots.data();
  args.sorted_token_ids_length = std::ssize(slots.span());
  args.expert_ids = blocks.data();
  args.expert_ids_length = std::ssize(blocks.span());
  args.num_tokens_post_pad = total.data();
  const bool good = args.sorted_token_ids_length >= sizes.sorted_token_ids_length &&
                    args.expert_ids_length >= sizes.expert_ids_length;
  require((tessera_batched_align_block_size(&args) == TESSERA_OK) == good,
          "good arguments refused, or bad ones accepted");
  require(counts.intact() && slots.intact() && blocks.intact() && total.intact(),
          "wrote beside an array");
  if (!good) {
    require(slots.untouched() && blocks.untouched() && total.untouched(), "a refused call wrote");
    return 0;
  }
  tessera::BatchedAlignBlockSizeArgs finished;
  finished.expert_num_tokens = TensorView::of(counts.span());
  finished.max_tokens_per_batch = args.max_tokens_per_batch;
  finished.block_size = args.block_size;
  finished.tail_expert = args.tail_expert;
  finished.sorted_token_ids = TensorView::of(slots.span());
  finished.expert_ids = TensorView::of(blocks.span());
  finished.num_tokens_post_pad = TensorView::of(total.span());
  const auto violations = tessera::contract::check_batched_align_block_size(finished);
  require(violations.empty(), violations.empty() ? "" : violations.front().message);
  return 0;
}
