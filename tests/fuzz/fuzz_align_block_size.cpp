// Fuzzes tessera_align_block_size on guarded memory: whatever the bytes say, the call is refused
// and writes nothing, or its outputs satisfy the contract.
//
//   scripts/fuzz.sh 30
//
// builds it and runs it for 30 seconds. A finding is replayed by giving its file to the program,
// build/fuzz/tests/fuzz/fuzz_align_block_size. TESSERA_IMPL picks the implementation.
#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "align_block_size_checker.hpp"
#include "fuzz_input.hpp"
#include "guarded_buffer.hpp"
#include "tessera/tessera.h"

namespace {

using tessera::TensorView;
using tessera::fuzz::FuzzHeader;
using tessera::fuzz::kDtypes;
using tessera::fuzz::require;
using tessera::test::GuardedBuffer;

/// The head of `bytes`, filled up with zeros where they do not suffice, is taken off.
template <typename T>
void take(std::span<const std::uint8_t>& bytes, std::span<T> into) {
  const std::size_t taken = std::min(bytes.size(), into.size_bytes());
  std::memset(into.data(), 0, into.size_bytes());
  if (taken > 0) std::memcpy(into.data(), bytes.data(), taken);
  bytes = bytes.subspan(taken);
}

void expect_refusal_by_query(const tessera_align_block_size_args& args,
                             const tessera_align_block_size_sizes& sizes) {
  const std::string message = tessera_last_error();
  require(message.starts_with("align_block_size: "), "a refusal without its form");
  require(sizes.sorted_token_ids_length == -1, "a refused query wrote its result");
  require(tessera_align_block_size(&args) != TESSERA_OK, "the call accepts what the query refuses");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tessera::fuzz;
  std::span<const std::uint8_t> bytes(data, size);
  FuzzHeader header{};
  take(bytes, std::span(&header, 1));
  const auto has = [&](std::uint8_t flag) { return (header.flags & flag) != 0; };
  const bool few_experts = header.num_experts >= 1 && header.num_experts <= kMaxExperts;

  std::optional<GuardedBuffer<std::int32_t>> expert_map, expert_counts;
  if (has(kGivesMap) && few_experts) {
    take(bytes, expert_map.emplace(header.num_experts).span());
  }
  if (has(kGivesCounts) && few_experts) expert_counts.emplace(header.num_experts);
  GuardedBuffer<std::int32_t> num_tokens_post_pad(1), num_dropped(1);
  GuardedBuffer<double> statistics(TESSERA_ALIGN_BLOCK_SIZE_NUM_STATISTICS);
  GuardedBuffer<std::int64_t> validation(TESSERA_ALIGN_BLOCK_SIZE_VALIDATION_LENGTH);

  const bool known_dtype = header.dtype < std::size(kDtypes);
  const std::size_t id_bytes = known_dtype ? kDtypes[header.dtype].bits / 8 : 1;
  const std::size_t num_given_ids = bytes.size() / id_bytes;
  const bool is_long = header.long_batch == 255 && num_given_ids > 0;
  const std::size_t num_ids = is_long ? kLongBatch : num_given_ids;
  GuardedBuffer<std::uint8_t> topk_ids(static_cast<std::int64_t>(num_ids * id_bytes));
  for (std::size_t i = 0; i < num_ids * id_bytes; ++i) {
    topk_ids.data()[i] = bytes[i % (num_given_ids * id_bytes)];
  }

  tessera_align_block_size_args args{};
  args.struct_size = sizeof(args);
  args.topk_ids = topk_ids.data();
  args.topk_ids_dtype = header.dtype;
  args.num_ids = static_cast<std::int64_t>(num_ids);
  args.block_size = header.block_size;
  args.num_experts = header.num_experts;
  args.expert_map = expert_map ? expert_map->data() : nullptr;
  args.ignore_invalid_experts = has(kIgnoresInvalidExperts);
  args.pad_sorted_ids = has(kPadsSortedIds);
  args.tail_expert = header.tail_expert;
  args.num_tokens_post_pad = num_tokens_post_pad.data();
  args.expert_counts = expert_counts ? expert_counts->data() : nullptr;
  args.num_dropped = has(kGivesDropped) ? num_dropped.data() : nullptr;
  args.statistics = has(kGivesStatisticsAndValidation) ? statistics.data() : nullptr;
  args.validation = has(kGivesStatisticsAndValidation) ? validation.data() : nullptr;
  args.map_tail = has(kMapsTail);
  args.filtered_group = has(kFilteredGroup);
  args.num_threads = std::min(header.num_threads, 4);

  tessera_align_block_size_sizes sizes{};
  sizes.struct_size = sizeof(sizes);
  sizes.sorted_token_ids_length = -1;
  if (tessera_align_block_size_query(&args, &sizes) != TESSERA_OK) {
    expect_refusal_by_query(args, sizes);
    return 0;
  }
  if (!few_experts || sizes.sorted_token_ids_length > kMaxElements) return 0;

  GuardedBuffer<std::int32_t> sorted_token_ids(
      extended(sizes.sorted_token_ids_length, header.sorted_extra));
  GuardedBuffer<std::int32_t> expert_ids(extended(sizes.expert_ids_length, header.experts_extra));
  args.sorted_token_ids = sorted_token_ids.data();
  args.sorted_token_ids_length = std::ssize(sorted_token_ids.span());
  args.expert_ids = expert_ids.data();
  args.expert_ids_length = std::ssize(expert_ids.span());
  const auto bytes_of = [](auto& buffer) { return std::as_writable_bytes(buffer.span()); };
  const std::span<std::byte> arrays[] = {
      bytes_of(topk_ids),
      expert_map ? bytes_of(*expert_map) : std::span<std::byte>(),
      bytes_of(sorted_token_ids),
      bytes_of(expert_ids),
      bytes_of(num_tokens_post_pad),
      expert_counts ? bytes_of(*expert_counts) : std::span<std::byte>(),
      has(kGivesDropped) ? bytes_of(num_dropped) : std::span<std::byte>(),
      has(kGivesStatisticsAndValidation) ? bytes_of(statistics) : std::span<std::byte>(),
      has(kGivesStatisticsAndValidation) ? bytes_of(validation) : std::span<std::byte>()};
  Workspace workspace(header.workspace, sizes.workspace_bytes, arrays);
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();

  const bool good = known_dtype && args.sorted_token_ids_length >= sizes.sorted_token_ids_length &&
                    args.expert_ids_length >= sizes.expert_ids_length && workspace.is_good();
  const tessera_status status = tessera_align_block_size(&args);
  require((status == TESSERA_OK) == good, "good arguments refused, or bad ones accepted");

  require(sorted_token_ids.intact() && expert_ids.intact() && num_tokens_post_pad.intact() &&
              num_dropped.intact() && statistics.intact() && validation.intact() &&
              topk_ids.intact() && workspace.intact() && (!expert_map || expert_map->intact()) &&
              (!expert_counts || expert_counts->intact()),
          "wrote beside an array");
  if (!good) {
    require(sorted_token_ids.untouched() && expert_ids.untouched() &&
                num_tokens_post_pad.untouched() && num_dropped.untouched() &&
                statistics.untouched() && validation.untouched() &&
                (!expert_counts || expert_counts->untouched()),
            "a refused call wrote");
    return 0;
  }

  tessera::AlignBlockSizeArgs finished;
  finished.topk_ids = TensorView::of(topk_ids.span());
  finished.topk_ids.num_elements = args.num_ids;
  finished.topk_ids.dtype = kDtypes[header.dtype];
  finished.block_size = args.block_size;
  finished.num_experts = args.num_experts;
  if (expert_map) finished.expert_map = TensorView::of(expert_map->span());
  finished.ignore_invalid_experts = args.ignore_invalid_experts != 0;
  finished.pad_sorted_ids = args.pad_sorted_ids != 0;
  finished.tail_expert = args.tail_expert;
  finished.map_tail = args.map_tail != 0;
  finished.filtered_group = args.filtered_group != 0;
  finished.sorted_token_ids = TensorView::of(sorted_token_ids.span());
  finished.expert_ids = TensorView::of(expert_ids.span());
  finished.num_tokens_post_pad = TensorView::of(num_tokens_post_pad.span());
  if (expert_counts) finished.expert_counts = TensorView::of(expert_counts->span());
  if (has(kGivesDropped)) finished.num_dropped = TensorView::of(num_dropped.span());
  if (has(kGivesStatisticsAndValidation)) {
    finished.statistics = TensorView::of(statistics.span());
    finished.validation = TensorView::of(validation.span());
  }
  const auto violations = tessera::contract::check_align_block_size(finished);
  require(violations.empty(), violations.empty() ? "" : violations.front().message);
  return 0;
}
