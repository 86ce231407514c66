#include "select_and_align_cases.hpp"

#include <algorithm>
#include <vector>

#include "arrays.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = SelectAndAlignCase;
using Logits = LogitValues;
using Bias = BiasValues;
using enum MapKind;
using enum Scoring;

constexpr FloatFormat kBf16 = kBfloat16Format;
constexpr FloatFormat kFp16 = kFloat16Format;

/// Tokens, experts and slots.
SelectExpertsCase sized(std::int64_t tokens, std::int64_t experts, std::int64_t top_k,
                        SelectExpertsCase c) {
  c.num_tokens = tokens;
  c.num_experts = experts;
  c.top_k = top_k;
  return c;
}

/// `topk_group` of `num_groups` groups.
SelectExpertsCase grouped(std::int64_t topk_group, std::int64_t num_groups, SelectExpertsCase c) {
  c.topk_group = topk_group;
  c.num_groups = num_groups;
  return c;
}

// clang-format off
std::vector<Case> make_table() {
  return {
      // As models have them.
      {.selection = sized(1, 8, 2, {.name = "mixtral_one", .format = kBf16, .renormalize = true})},
      {.selection = sized(1, 128, 8, {.name = "qwen3_one", .format = kBf16, .renormalize = true})},
      {.selection = sized(17, 128, 8, {.name = "qwen3", .format = kBf16, .renormalize = true}), .expert_counts = true},
      {.selection = sized(300, 128, 8, {.name = "qwen3_of_many", .renormalize = true}), .block_size = 64},
      {.selection = sized(9, 60, 4, {.name = "qwen2", .format = kBf16}), .statistics = true},
      {.selection = sized(40, 512, 10, {.name = "qwen3_next", .format = kBf16, .renormalize = true})},
      {.selection = grouped(3, 8, sized(9, 160, 6, {.name = "deepseek_v2", .scaling_factor = 16}))},
      {.selection = grouped(4, 8, sized(1, 256, 8, {.name = "deepseek_v3_one", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})), .block_size = 64},
      {.selection = grouped(4, 8, sized(130, 256, 8, {.name = "deepseek_v3", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})), .block_size = 64, .expert_counts = true, .statistics = true},
      {.selection = grouped(4, 8, sized(33, 256, 8, {.name = "deepseek_v3_ranks", .format = kBf16, .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})), .map = kHalfRemote, .ignore_invalid_experts = true, .statistics = true},
      {.selection = sized(12, 384, 8, {.name = "kimi_k2", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true})},
      {.selection = sized(12, 256, 6, {.name = "deepseek_v4", .scoring = kSqrtSoftplus, .bias = Bias::kOrdinary, .renormalize = true})},

      {.selection = sized(0, 64, 6, {.name = "no_tokens"}), .expert_counts = true, .statistics = true},
      {.selection = sized(0, 64, 6, {.name = "no_tokens_padded", .bias = Bias::kOrdinary}), .pad_sorted_ids = true, .extra_length = 5},
      {.selection = sized(1, 1, 1, {.name = "one_of_all"}), .block_size = 1},
      {.selection = sized(5, 1, 1, {.name = "one_expert", .scoring = kSigmoid, .bias = Bias::kSpecial}), .block_size = 4},
      {.selection = sized(30, 13, 3, {.name = "blocks_of_7", .format = kFp16}), .block_size = 7},
      {.selection = sized(30, 13, 3, {.name = "blocks_of_7_padded", .format = kFp16}), .block_size = 7, .pad_sorted_ids = true},
      {.selection = sized(5, 6, 2, {.name = "block_longer_than_ids"}), .block_size = 10000},
      {.selection = sized(20, 16, 16, {.name = "all_experts"}), .block_size = 8, .expert_counts = true},
      {.selection = sized(20, 16, 2, {.name = "long_outputs"}), .extra_length = 1001},

      // Both sides of the limits of kernels: tokens, experts, and pairs.
      {.selection = sized(2, 32, 4, {.name = "2x32"}), .statistics = true},
      {.selection = sized(3, 33, 4, {.name = "3x33", .format = kFp16})},
      {.selection = sized(4, 128, 8, {.name = "4x128", .format = kBf16})},
      {.selection = sized(5, 129, 8, {.name = "5x129", .format = kBf16}), .expert_counts = true},
      {.selection = sized(7, 256, 8, {.name = "7x256"})},
      {.selection = sized(8, 256, 8, {.name = "8x256"}), .statistics = true},
      {.selection = sized(9, 257, 8, {.name = "9x257"})},
      {.selection = sized(15, 64, 8, {.name = "15x64"})},
      {.selection = sized(16, 512, 8, {.name = "16x512", .scoring = kSqrtSoftplus})},
      {.selection = sized(17, 513, 8, {.name = "17x513"}), .statistics = true},
      {.selection = sized(31, 256, 8, {.name = "31x256", .format = kBf16})},
      {.selection = sized(32, 256, 8, {.name = "32x256", .format = kBf16}), .expert_counts = true},
      {.selection = sized(33, 256, 8, {.name = "33x256", .format = kBf16})},
      {.selection = sized(127, 64, 8, {.name = "127x64"})},
      {.selection = sized(128, 512, 8, {.name = "128x512"}), .statistics = true},
      {.selection = sized(129, 128, 8, {.name = "129x128"})},
      {.selection = sized(255, 256, 8, {.name = "255x256", .format = kBf16}), .block_size = 64},
      {.selection = sized(256, 256, 8, {.name = "256x256", .format = kBf16}), .block_size = 64, .expert_counts = true, .statistics = true},
      {.selection = sized(257, 256, 8, {.name = "257x256", .format = kBf16}), .block_size = 64, .statistics = true},
      {.selection = sized(16, 64, 64, {.name = "16x64x64"})},
      {.selection = sized(17, 64, 64, {.name = "17x64x64"})},
      {.selection = sized(256, 64, 64, {.name = "256x64x64"})},
      {.selection = sized(3, 512, 400, {.name = "3x512x400"})},
      {.selection = sized(2, 512, 512, {.name = "2x512x512"}), .statistics = true},
      {.selection = sized(20, 512, 512, {.name = "20x512x512"})},
      {.selection = sized(3, 1000, 20, {.name = "3x1000x20", .bias = Bias::kOrdinary})},
      {.selection = sized(40, 4096, 8, {.name = "40x4096x8"}), .statistics = true},

      {.selection = sized(24, 24, 3, {.name = "map_identity"}), .map = kIdentity},
      {.selection = sized(24, 24, 3, {.name = "map_half_remote"}), .map = kHalfRemote, .expert_counts = true},
      {.selection = sized(24, 24, 3, {.name = "map_half_remote_local"}), .map = kHalfRemote, .ignore_invalid_experts = true, .expert_counts = true},
      {.selection = sized(3, 24, 3, {.name = "map_half_remote_local_few"}), .map = kHalfRemote, .ignore_invalid_experts = true, .expert_counts = true, .statistics = true},
      {.selection = sized(24, 24, 3, {.name = "map_all_remote"}), .map = kAllRemote, .statistics = true},
      {.selection = sized(24, 24, 3, {.name = "map_all_remote_local"}), .map = kAllRemote, .ignore_invalid_experts = true, .statistics = true},
      {.selection = sized(24, 24, 3, {.name = "map_broken"}), .map = kBroken},
      {.selection = sized(24, 24, 3, {.name = "map_broken_local"}), .map = kBroken, .ignore_invalid_experts = true, .pad_sorted_ids = true, .extra_length = 9},
      {.selection = sized(24, 24, 3, {.name = "map_merged_local"}), .map = kMerged, .ignore_invalid_experts = true, .statistics = true},
      {.selection = sized(400, 24, 3, {.name = "map_merged_local_of_many"}), .map = kMerged, .ignore_invalid_experts = true, .statistics = true},
      {.selection = sized(24, 24, 3, {.name = "ignore_without_map"}), .ignore_invalid_experts = true},

      {.selection = sized(30, 64, 8, {.name = "padding", .renormalize = true, .num_valid_tokens = 11}), .expert_counts = true, .statistics = true},
      {.selection = sized(5, 64, 8, {.name = "padding_few", .num_valid_tokens = 3}), .statistics = true},
      {.selection = sized(200, 64, 8, {.name = "padding_one_valid", .num_valid_tokens = 1}), .statistics = true},
      {.selection = sized(30, 64, 8, {.name = "all_padding", .num_valid_tokens = 0}), .expert_counts = true, .statistics = true},
      {.selection = sized(30, 64, 8, {.name = "padding_below_0", .num_valid_tokens = -5})},
      {.selection = sized(30, 64, 8, {.name = "no_padding", .num_valid_tokens = 1000})},
      {.selection = sized(400, 64, 8, {.name = "padding_of_many", .num_valid_tokens = 301}), .map = kHalfRemote, .ignore_invalid_experts = true, .statistics = true},
      {.selection = sized(30, 64, 8, {.name = "rows_apart_fp32", .gap = 5})},
      {.selection = sized(30, 64, 8, {.name = "rows_apart", .format = kBf16, .gap = 3}), .statistics = true},

      {.selection = sized(60, 64, 8, {.name = "equal", .logits = Logits::kEqual}), .statistics = true},
      {.selection = sized(60, 64, 8, {.name = "few_values_bias", .scoring = kSigmoid, .logits = Logits::kFew, .bias = Bias::kTies})},
      {.selection = grouped(3, 8, sized(30, 64, 8, {.name = "special", .scoring = kSigmoid, .logits = Logits::kSpecial, .bias = Bias::kSpecial, .renormalize = true}))},
      {.selection = sized(30, 64, 8, {.name = "nans", .logits = Logits::kNans}), .statistics = true},

      {.selection = sized(3000, 64, 6, {.name = "many_tokens", .format = kBf16}), .block_size = 128, .statistics = true},
      {.selection = sized(9000, 16, 8, {.name = "many_pairs", .format = kBf16}), .block_size = 128, .map = kHalfRemote, .expert_counts = true},
  };
}
// clang-format on

}  // namespace

std::span<const SelectAndAlignCase> select_and_align_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

SelectAndAlignCase random_select_and_align_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(~seed);
  Case c;
  c.selection = random_select_experts_case(seed, max_elements);
  const std::int64_t num_pairs = c.selection.num_tokens * c.selection.top_k;
  const std::int64_t max_groups =
      std::max<std::int64_t>(1, std::min(num_pairs, c.selection.num_experts));
  const std::int64_t drawn = random.one_in(2) ? std::int64_t{1} << random.below(9)
                                              : 1 + random.magnitude_below(max_elements + 1);
  c.block_size = std::min(drawn, 1 + max_elements / max_groups);
  if (random.one_in(2)) c.map = static_cast<MapKind>(1 + random.below(5));
  c.ignore_invalid_experts = random.one_in(2);
  c.pad_sorted_ids = random.one_in(2);
  c.expert_counts = random.one_in(2);
  c.statistics = random.one_in(2);
  if (random.one_in(3)) c.extra_length = random.below(300);
  return c;
}

CaseArguments make_arguments(const SelectAndAlignCase& c, std::uint64_t seed) {
  const CaseArguments made_selection = make_arguments(c.selection, seed);
  const auto& selection = made_selection.as<SelectExpertsArgs>();
  AlignBlockSizeCase pairs;
  pairs.num_experts = c.selection.num_experts;
  pairs.map = c.map;
  const AlignBlockSizeInputs inputs = make_inputs(pairs, seed);  // of no tokens: a map alone
  pairs.num_tokens = c.selection.num_tokens;
  pairs.top_k = c.selection.top_k;
  pairs.block_size = c.block_size;
  pairs.pad_sorted_ids = c.pad_sorted_ids;
  const AlignBlockSizeSizes sizes = smallest_sizes(pairs);

  CaseBuilder<SelectAndAlignArgs> made("select_and_align");
  made.keep(made_selection);
  SelectAndAlignArgs& args = made.args();
  args.router_logits = selection.router_logits;
  args.correction_bias = selection.correction_bias;
  args.num_valid_tokens = selection.num_valid_tokens;
  if (inputs.expert_map) args.expert_map = made.input(*inputs.expert_map);
  args.topk_weights = selection.topk_weights;
  args.topk_ids = selection.topk_ids;
  args.sorted_token_ids = output(kInt32, {sizes.sorted_token_ids + c.extra_length});
  args.expert_ids = output(kInt32, {sizes.expert_ids + c.extra_length});
  args.num_tokens_post_pad = output(kInt32, {1});
  if (c.expert_counts) args.expert_counts = output(kInt32, {c.selection.num_experts});
  if (c.statistics) args.statistics = output(kFloat64, {kAlignBlockSizeNumStatistics});
  args.top_k = selection.top_k;
  args.block_size = c.block_size;
  args.scoring = selection.scoring;
  args.renormalize = selection.renormalize;
  args.num_expert_group = selection.num_expert_group;
  args.topk_group = selection.topk_group;
  args.routed_scaling_factor = selection.routed_scaling_factor;
  args.ignore_invalid_experts = c.ignore_invalid_experts;
  args.pad_sorted_ids = c.pad_sorted_ids;
  return made.finish();
}

}  // namespace tessera::contract
