#include "lora_align_block_size_cases.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "arrays.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = LoraAlignBlockSizeCase;

constexpr std::int32_t kSmallest = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kLargest = std::numeric_limits<std::int32_t>::max();

// clang-format off
std::vector<Case> make_table() {
  using Choice = AdapterChoice;
  using Set = AdapterSet;
  constexpr DLDataType kInt64{kDLInt, 64, 1};
  constexpr DLDataType kUint8{kDLUInt, 8, 1};
  constexpr DLDataType kInt16{kDLInt, 16, 1};
  return {
      // As servers call it: decoding, one prompt, a batch of prompts.
      {.pairs = {.name = "decode", .num_tokens = 64, .num_experts = 64, .top_k = 8, .block_size = 16}, .max_loras = 4, .enabled = Set::kAll, .in_use = Set::kAll},
      {.pairs = {.name = "prompt", .num_tokens = 2000, .num_experts = 128, .top_k = 8, .block_size = 64}, .max_loras = 8, .choice = Choice::kOne, .enabled = Set::kAll, .in_use = Set::kBroken},
      {.pairs = {.name = "prompts", .num_tokens = 4096, .num_experts = 64, .top_k = 6, .block_size = 32, .pad_sorted_ids = true}, .max_loras = 8, .choice = Choice::kRuns, .enabled = Set::kEven, .in_use = Set::kAll},
      {.pairs = {.name = "two_rows_many_ids", .num_tokens = 30011, .num_experts = 256, .top_k = 8, .block_size = 128}, .max_loras = 2},
      {.pairs = {.name = "one_row_many_ids", .num_tokens = 30011, .num_experts = 8, .top_k = 2, .block_size = 64, .dtype = kInt64}, .max_loras = 1, .choice = Choice::kRuns},

      {.pairs = {.name = "no_tokens", .num_tokens = 0, .num_experts = 8, .top_k = 2, .block_size = 16}, .max_loras = 3},
      {.pairs = {.name = "no_tokens_long_rows", .num_tokens = 0, .num_experts = 8, .top_k = 2, .block_size = 16, .extra_length = 5}, .max_loras = 3},
      {.pairs = {.name = "one_pair", .num_tokens = 1, .num_experts = 1, .block_size = 1}, .max_loras = 1, .choice = Choice::kOne},
      {.pairs = {.name = "top_k_7", .num_tokens = 333, .num_experts = 20, .top_k = 7, .block_size = 5}, .max_loras = 3},
      {.pairs = {.name = "top_k_above_experts", .num_tokens = 50, .num_experts = 3, .top_k = 10, .block_size = 4}, .max_loras = 2},
      {.pairs = {.name = "block_1", .num_tokens = 500, .num_experts = 16, .top_k = 2, .block_size = 1}, .max_loras = 4},
      {.pairs = {.name = "block_1000", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 1000}, .max_loras = 4},
      {.pairs = {.name = "one_expert", .num_tokens = 700, .num_experts = 1, .block_size = 16}, .max_loras = 4, .choice = Choice::kRuns},
      {.pairs = {.name = "many_experts", .num_tokens = 1000, .num_experts = 5000, .top_k = 4, .block_size = 8, .dtype = kInt16}, .max_loras = 3},
      {.pairs = {.name = "too_many_experts_for_shared_memory", .num_tokens = 200, .num_experts = 65536, .top_k = 2, .block_size = 4}, .max_loras = 2},
      {.pairs = {.name = "more_adapters_than_tokens", .num_tokens = 20, .num_experts = 4, .top_k = 2, .block_size = 4}, .max_loras = 300},
      {.pairs = {.name = "hot_expert", .num_tokens = 3000, .num_experts = 32, .top_k = 2, .block_size = 64, .distribution = IdDistribution::kOneExpert}, .max_loras = 2},
      {.pairs = {.name = "sorted_ids", .num_tokens = 3000, .num_experts = 32, .top_k = 2, .block_size = 64, .distribution = IdDistribution::kSorted}, .max_loras = 5, .choice = Choice::kRuns},

      {.pairs = {.name = "no_adapter", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16}, .max_loras = 4, .choice = Choice::kNone},
      {.pairs = {.name = "broken_adapters", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16}, .max_loras = 4, .choice = Choice::kBroken},
      {.pairs = {.name = "none_enabled", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16, .tail_expert = 0}, .max_loras = 4, .enabled = Set::kNone},
      {.pairs = {.name = "none_in_use", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16}, .max_loras = 4, .in_use = Set::kNone},
      {.pairs = {.name = "even_in_use", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16}, .max_loras = 5, .in_use = Set::kEven},
      {.pairs = {.name = "all_broken", .num_tokens = 400, .num_experts = 16, .top_k = 3, .block_size = 16, .dtype = kUint8, .broken = BrokenIds::kSome, .map = MapKind::kBroken, .extra_length = 3}, .max_loras = 5, .choice = Choice::kBroken, .enabled = Set::kBroken, .in_use = Set::kBroken},
      {.pairs = {.name = "broken_ids", .num_tokens = 400, .num_experts = 16, .top_k = 3, .block_size = 16, .dtype = kInt64, .broken = BrokenIds::kSome}, .max_loras = 3},
      {.pairs = {.name = "no_valid_id", .num_tokens = 400, .num_experts = 16, .top_k = 3, .block_size = 16, .broken = BrokenIds::kAll}, .max_loras = 3},
      {.pairs = {.name = "map_half_remote", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = MapKind::kHalfRemote}, .max_loras = 3},
      {.pairs = {.name = "map_merged", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .broken = BrokenIds::kSome, .map = MapKind::kMerged}, .max_loras = 3, .choice = Choice::kRuns},
      {.pairs = {.name = "map_all_remote", .num_tokens = 300, .num_experts = 24, .top_k = 3, .block_size = 16, .map = MapKind::kAllRemote, .tail_expert = -7}, .max_loras = 3},
      {.pairs = {.name = "long_rows", .num_tokens = 100, .num_experts = 16, .top_k = 2, .block_size = 16, .tail_expert = kSmallest, .extra_length = 1001}, .max_loras = 3},
  };
}
// clang-format on

std::vector<std::int32_t> make_mapping(const Case& c, RandomNumbers& random) {
  const auto max_loras = static_cast<std::int32_t>(c.max_loras);
  const std::int32_t no_adapters[] = {-1, -2, max_loras, kSmallest, kLargest};
  std::vector<std::int32_t> mapping(static_cast<std::size_t>(c.pairs.num_tokens), -1);
  for (std::size_t token = 0; token < mapping.size(); ++token) {
    const auto drawn = static_cast<std::int32_t>(random.below(c.max_loras + 1)) - 1;
    switch (c.choice) {
      case AdapterChoice::kUniform:
        mapping[token] = drawn;
        break;
      case AdapterChoice::kRuns:
        mapping[token] = token == 0 || random.one_in(100) ? drawn : mapping[token - 1];
        break;
      case AdapterChoice::kOne:
        mapping[token] = max_loras - 1;
        break;
      case AdapterChoice::kNone:
        break;
      case AdapterChoice::kBroken:
        mapping[token] = random.one_in(2) ? drawn : no_adapters[random.below(5)];
        break;
    }
  }
  return mapping;
}

/// Has one more element than there are adapters, as in vLLM.
std::vector<std::int32_t> make_enabled(const Case& c, RandomNumbers& random) {
  const std::int32_t truths[] = {1, -1, 256, kSmallest};
  std::vector<std::int32_t> enabled(static_cast<std::size_t>(c.max_loras) + 1, 0);
  for (std::size_t adapter = 0; adapter < enabled.size(); ++adapter) {
    if (c.enabled == AdapterSet::kNone) break;
    if (c.enabled != AdapterSet::kAll && adapter % 2 != 0) continue;
    enabled[adapter] = c.enabled == AdapterSet::kBroken ? truths[random.below(4)] : 1;
  }
  return enabled;
}

std::vector<std::int32_t> make_lora_ids(const Case& c) {
  const auto max_loras = static_cast<std::int32_t>(c.max_loras);
  const bool is_broken = c.in_use == AdapterSet::kBroken;
  std::vector<std::int32_t> lora_ids;
  if (is_broken) lora_ids = {-1, max_loras, kLargest, kSmallest};
  for (std::int32_t adapter = max_loras - 1; adapter >= 0; --adapter) {
    if (c.in_use == AdapterSet::kNone) break;
    if (c.in_use != AdapterSet::kAll && adapter % 2 != 0) continue;
    lora_ids.push_back(adapter);
    if (is_broken) lora_ids.insert(lora_ids.end(), {-1, adapter});
  }
  return lora_ids;
}

}  // namespace

std::span<const LoraAlignBlockSizeCase> lora_align_block_size_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

LoraAlignBlockSizeCase random_lora_align_block_size_case(std::uint64_t seed, std::int64_t max_ids) {
  RandomNumbers random(~seed);
  Case c;
  c.pairs = random_align_block_size_case(seed, max_ids);
  c.max_loras = 1 + random.magnitude_below(9);
  c.choice = static_cast<AdapterChoice>(random.below(5));
  c.enabled = static_cast<AdapterSet>(random.below(5));
  c.in_use = static_cast<AdapterSet>(random.below(5));
  // Limits the rows by the checker's work: it goes through all experts for each row.
  const std::int64_t num_ids = c.pairs.num_tokens * c.pairs.top_k;
  const std::int64_t row = num_ids + std::min(num_ids, c.pairs.num_experts) * c.pairs.block_size +
                           c.pairs.num_experts + c.pairs.extra_length;
  const std::int64_t max_loras = (std::int64_t{1} << 18) / (row + 1) + 1;
  if (random.one_in(8)) c.max_loras = 1 + random.magnitude_below(max_loras);
  c.max_loras = std::min(c.max_loras, max_loras);
  return c;
}

LoraAlignBlockSizeInputs make_inputs(const LoraAlignBlockSizeCase& c, std::uint64_t seed) {
  RandomNumbers random(~seed);
  LoraAlignBlockSizeInputs inputs;
  inputs.pairs = make_inputs(c.pairs, seed);
  inputs.token_lora_mapping = make_mapping(c, random);
  if (c.enabled != AdapterSet::kNotGiven) inputs.adapter_enabled = make_enabled(c, random);
  if (c.in_use != AdapterSet::kNotGiven) inputs.lora_ids = make_lora_ids(c);
  return inputs;
}

CaseArguments make_arguments(const LoraAlignBlockSizeCase& c, std::uint64_t seed) {
  LoraAlignBlockSizeInputs inputs = make_inputs(c, seed);
  AlignBlockSizeCase pairs = c.pairs;
  pairs.filtered_group = false;  // which this op does not have
  const AlignBlockSizeSizes row = smallest_sizes(pairs);
  CaseBuilder<LoraAlignBlockSizeArgs> made("lora_align_block_size");
  LoraAlignBlockSizeArgs& args = made.args();
  args.topk_ids =
      made.input(std::move(inputs.pairs.topk_ids), pairs.dtype, {pairs.num_tokens, pairs.top_k});
  args.top_k = pairs.top_k;
  args.token_lora_mapping = made.input(inputs.token_lora_mapping);
  args.block_size = pairs.block_size;
  args.num_experts = pairs.num_experts;
  args.max_loras = c.max_loras;
  if (inputs.adapter_enabled) args.adapter_enabled = made.input(*inputs.adapter_enabled);
  if (inputs.lora_ids) args.lora_ids = made.input(*inputs.lora_ids);
  if (inputs.pairs.expert_map) args.expert_map = made.input(*inputs.pairs.expert_map);
  args.pad_sorted_ids = pairs.pad_sorted_ids;
  args.tail_expert = pairs.tail_expert;
  args.sorted_token_ids =
      output(kInt32, {c.max_loras * (row.sorted_token_ids + pairs.extra_length)});
  args.expert_ids = output(kInt32, {c.max_loras * (row.expert_ids + pairs.extra_length)});
  args.num_tokens_post_pad = output(kInt32, {c.max_loras});
  return made.finish();
}

}  // namespace tessera::contract
