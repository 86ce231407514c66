#include "fused_experts_cases.hpp"

#include <algorithm>
#include <iterator>

#include "random_case.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = FusedExpertsCase;
using enum Activation;
using enum ExpertRouting;
using enum ExpertScales;
using enum HiddenScales;
using enum ExpertValues;

constexpr FloatFormat kBf16 = kBfloat16Format;
constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;
constexpr float kInf = std::numeric_limits<float>::infinity();

/// Tokens, slots, experts, hidden size and intermediate size of a case.
struct Sizes {
  std::int64_t tokens;
  std::int64_t slots;
  std::int64_t experts;
  std::int64_t hidden;
  std::int64_t intermediate;
};

Case sized(Sizes sizes, Case c) {
  c.num_tokens = sizes.tokens;
  c.top_k = sizes.slots;
  c.num_experts = sizes.experts;
  c.hidden_size = sizes.hidden;
  c.intermediate_size = sizes.intermediate;
  return c;
}

// clang-format off
std::vector<Case> make_table() {
  return {
      // Shards of models, made narrower.
      sized({1, 8, 16, 256, 96}, {.name = "decode"}),
      sized({16, 8, 16, 256, 96}, {.name = "batch"}),
      sized({65, 4, 8, 128, 96}, {.name = "prefill"}),
      sized({1, 8, 16, 2048, 192}, {.name = "decode_wide", .values = kExact}),
      sized({3, 2, 8, 512, 704}, {.name = "decode_long", .router_format = kBf16, .values = kExact}),
      sized({9, 6, 12, 320, 80}, {.name = "fp16", .format = kFp16, .router_format = kFp16}),
      sized({9, 6, 12, 320, 80}, {.name = "fp32", .format = kFp32}),

      sized({0, 2, 4, 64, 32}, {.name = "no_tokens"}),
      sized({1, 1, 1, 1, 1}, {.name = "one_of_all"}),
      sized({5, 3, 4, 1, 7}, {.name = "one_hidden", .format = kFp32}),
      sized({5, 3, 4, 7, 1}, {.name = "one_intermediate", .format = kFp16}),
      sized({40, 1, 6, 64, 48}, {.name = "one_slot"}),
      sized({6, 4, 1, 64, 48}, {.name = "one_expert"}),
      sized({17, 10, 257, 24, 8}, {.name = "257_experts"}),
      sized({3, 33, 40, 24, 8}, {.name = "33_slots"}),
      sized({5, 70, 96, 24, 8}, {.name = "70_slots", .format = kFp16, .routing = kMixed}),
      // As much as a kernel sorts by itself, and more.
      sized({256, 8, 512, 24, 8}, {.name = "2048_pairs_of_512_experts", .values = kExact}),
      sized({257, 8, 40, 24, 8}, {.name = "2056_pairs", .values = kExact}),
      sized({7, 4, 513, 24, 8}, {.name = "513_experts", .values = kExact}),
      sized({5, 3, 7, 123, 45}, {.name = "odd_sizes", .values = kExact}),
      sized({5, 3, 7, 67, 33}, {.name = "odd_sizes_fp16", .format = kFp16, .values = kExact}),
      sized({5, 3, 7, 67, 33}, {.name = "odd_sizes_fp32", .format = kFp32, .values = kExact}),
      sized({4, 2, 4, 511, 63}, {.name = "511_hidden"}),
      sized({4, 2, 4, 64, 511}, {.name = "511_intermediate", .values = kExact}),
      sized({63, 2, 3, 72, 40}, {.name = "63_tokens", .values = kExact}),
      sized({64, 2, 3, 72, 40}, {.name = "64_tokens", .format = kFp32}),

      sized({6, 3, 5, 64, 48}, {.name = "gelu", .activation = kGelu, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "gelu_fp32", .activation = kGelu, .format = kFp32, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "gelu_tanh", .activation = kGeluTanh, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "gelu_tanh_fp32", .activation = kGeluTanh, .format = kFp32, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai", .activation = kSwigluoai, .values = kExact, .w13_bias = true, .w2_bias = true}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_clamped", .activation = kSwigluoai, .format = kFp32, .values = kExact, .swiglu_limit = 1.5F}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_no_limit", .activation = kSwigluoai, .swiglu_limit = kInf}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_parameters", .activation = kSwigluoai, .format = kFp16, .values = kExact, .swiglu_alpha = -0.75F, .swiglu_beta = -2.5F, .swiglu_limit = 3}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_zero_parameters", .activation = kSwigluoai, .values = kExact, .swiglu_alpha = 0, .swiglu_beta = 0}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_uninterleave", .activation = kSwigluoaiUninterleave, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "swigluoai_uninterleave_clamped", .activation = kSwigluoaiUninterleave, .w13_bias = true, .swiglu_limit = 1}),
      sized({6, 3, 5, 64, 48}, {.name = "silu_no_mul", .activation = kSiluNoMul, .values = kExact, .w13_bias = true}),
      sized({6, 3, 5, 64, 48}, {.name = "gelu_no_mul", .activation = kGeluNoMul, .format = kFp32, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "gelu_tanh_no_mul", .activation = kGeluTanhNoMul, .format = kFp16, .values = kExact, .w2_bias = true}),
      // Every sum is exact: only whether rows are rounded to 16 bits is free.
      sized({6, 3, 5, 64, 48}, {.name = "relu2_no_mul", .activation = kRelu2NoMul, .values = kExact, .w13_bias = true, .w2_bias = true}),
      sized({6, 3, 5, 64, 48}, {.name = "relu2_no_mul_fp16", .activation = kRelu2NoMul, .format = kFp16, .values = kExact}),
      sized({6, 3, 5, 64, 48}, {.name = "relu2_no_mul_fp32", .activation = kRelu2NoMul, .format = kFp32, .values = kExact}),

      sized({6, 3, 5, 64, 48}, {.name = "biases", .values = kExact, .w13_bias = true, .w2_bias = true}),
      sized({6, 3, 5, 64, 48}, {.name = "biases_fp32", .format = kFp32, .w13_bias = true, .w2_bias = true}),
      sized({9, 1, 5, 64, 48}, {.name = "weight_on_input", .values = kExact, .weight_on_input = true}),
      sized({9, 1, 5, 64, 48}, {.name = "weight_on_input_biases", .format = kFp16, .w13_bias = true, .w2_bias = true, .weight_on_input = true}),
      sized({600, 1, 16, 64, 520}, {.name = "weight_on_input_of_many", .format = kFp16, .w13_bias = true, .weight_on_input = true}),
      sized({9, 2, 5, 64, 48}, {.name = "batch_invariant", .batch_invariant = true}),

      sized({20, 3, 8, 64, 48}, {.name = "hot_expert", .values = kExact, .routing = kHot}),
      sized({150, 2, 3, 64, 48}, {.name = "hot_expert_of_many", .values = kExact, .routing = kHot, .int64_ids = true}),
      sized({20, 3, 16, 64, 48}, {.name = "empty_experts", .values = kExact, .routing = kFew, .int64_ids = true}),
      sized({6, 3, 8, 64, 48}, {.name = "no_pairs", .routing = kNone}),
      sized({20, 3, 8, 64, 48}, {.name = "mixed_ids", .values = kExact, .routing = kMixed}),
      sized({20, 3, 8, 64, 48}, {.name = "mixed_int64_ids", .values = kExact, .routing = kMixed, .int64_ids = true}),
      sized({20, 3, 8, 64, 48}, {.name = "duplicates", .values = kExact, .routing = kDuplicates}),
      sized({20, 3, 4, 64, 48}, {.name = "expert_map", .values = kExact, .num_global_experts = 12}),
      sized({20, 3, 9, 64, 48}, {.name = "expert_map_mixed", .format = kFp16, .values = kExact, .routing = kMixed, .int64_ids = true, .num_global_experts = 5}),

      sized({9, 3, 4, 64, 48}, {.name = "rows_apart", .values = kExact, .w13_bias = true, .w2_bias = true, .gap = 8}),
      sized({9, 3, 4, 63, 47}, {.name = "rows_apart_unaligned", .format = kFp16, .values = kExact, .gap = 1}),
      sized({9, 3, 4, 64, 48}, {.name = "transposed", .values = kExact, .transposed = true}),
      sized({9, 3, 4, 64, 48}, {.name = "transposed_gpt_oss", .activation = kSwigluoai, .values = kExact, .w13_bias = true, .w2_bias = true, .transposed = true}),
      sized({9, 3, 4, 61, 45}, {.name = "transposed_apart", .format = kFp32, .values = kExact, .int64_ids = true, .transposed = true, .gap = 3}),

      sized({9, 3, 4, 96, 48}, {.name = "cancelling", .values = kCancelling}),
      sized({9, 3, 4, 96, 48}, {.name = "cancelling_fp32", .format = kFp32, .values = kCancelling, .w13_bias = true}),
      sized({9, 3, 4, 64, 48}, {.name = "large", .values = kLarge}),
      sized({9, 3, 4, 64, 48}, {.name = "large_fp16", .format = kFp16, .values = kLarge}),
      sized({9, 3, 4, 64, 48}, {.name = "large_relu2_fp16", .activation = kRelu2NoMul, .format = kFp16, .values = kLarge}),
      sized({9, 3, 4, 64, 48}, {.name = "subnormal", .activation = kGeluNoMul, .values = kSubnormal}),
      sized({9, 3, 4, 64, 48}, {.name = "subnormal_fp16", .activation = kSwigluoai, .format = kFp16, .values = kSubnormal}),
      sized({9, 3, 4, 64, 48}, {.name = "zero", .values = kZero, .w2_bias = true}),
      sized({20, 2, 16, 64, 48}, {.name = "special", .values = kSpecial}),
      sized({20, 2, 16, 64, 48}, {.name = "special_relu2_fp32", .activation = kRelu2NoMul, .format = kFp32, .values = kSpecial}),
      sized({20, 2, 16, 64, 48}, {.name = "special_swigluoai_fp16", .activation = kSwigluoai, .format = kFp16, .values = kSpecial}),

      // Weights in float8_e4m3fn: sizes with whole blocks, with rests, and with less than one.
      sized({5, 4, 8, 512, 256}, {.name = "fp8_blocks", .scales = kBlocks}),
      sized({5, 4, 8, 512, 256}, {.name = "fp8_blocks_exact", .values = kExact, .scales = kBlocks, .use_ue8m0 = true}),
      sized({3, 2, 4, 320, 192}, {.name = "fp8_blocks_192", .format = kFp32, .scales = kBlocks}),
      sized({3, 2, 4, 200, 320}, {.name = "fp8_blocks_320", .format = kFp32, .w13_bias = true, .w2_bias = true, .scales = kBlocks, .zero_groups = true}),
      sized({2, 2, 3, 256, 704}, {.name = "fp8_blocks_704", .format = kFp16, .scales = kBlocks, .use_ue8m0 = true}),
      sized({4, 2, 3, 130, 129}, {.name = "fp8_blocks_129", .activation = kSwigluoai, .format = kFp32, .w13_bias = true, .scales = kBlocks}),
      sized({4, 2, 3, 320, 192}, {.name = "fp8_blocks_uninterleave", .activation = kSwigluoaiUninterleave, .scales = kBlocks}),
      sized({4, 2, 3, 320, 192}, {.name = "fp8_blocks_no_mul", .activation = kGeluNoMul, .format = kFp32, .scales = kBlocks}),
      sized({4, 3, 5, 64, 48}, {.name = "fp8_less_than_a_block", .scales = kBlocks}),
      sized({1, 1, 1, 1, 1}, {.name = "fp8_one_of_all", .scales = kBlocks}),
      sized({0, 2, 4, 64, 32}, {.name = "fp8_no_tokens", .scales = kPerRow}),
      sized({4, 3, 5, 320, 192}, {.name = "fp8_x_in_groups", .format = kFp32, .scales = kBlocks, .hidden = kFp8Rows}),
      sized({4, 3, 5, 320, 192}, {.name = "fp8_x_in_groups_exact", .activation = kRelu2NoMul, .values = kExact, .scales = kBlocks, .hidden = kFp8Rows, .use_ue8m0 = true}),
      sized({6, 3, 5, 192, 144}, {.name = "fp8_rows", .scales = kPerRow}),
      sized({6, 3, 5, 192, 144}, {.name = "fp8_rows_fp32", .format = kFp32, .w13_bias = true, .w2_bias = true, .scales = kPerRow}),
      sized({3, 1, 3, 16, 1104}, {.name = "fp8_rows_long", .activation = kGeluNoMul, .scales = kPerRow, .has_outlier = true}),
      sized({2, 2, 2, 16, 1040}, {.name = "fp8_rows_long_ue8m0", .scales = kPerRow, .use_ue8m0 = true, .has_outlier = true}),
      sized({6, 3, 5, 67, 45}, {.name = "fp8_rows_static", .activation = kGeluTanh, .format = kFp32, .scales = kPerRow, .hidden = kStatic}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_rows_static_bf16", .w13_bias = true, .scales = kPerRow, .hidden = kStatic}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_experts_x_static_bf16", .scales = kPerExpert, .hidden = kFp8Static}),
      sized({30, 2, 3, 16, 592}, {.name = "fp8_rows_long_of_many", .scales = kPerRow, .has_outlier = true}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_rows_x", .format = kFp16, .scales = kPerRow, .hidden = kFp8Rows}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_rows_ue8m0", .format = kFp32, .scales = kPerRow, .use_ue8m0 = true}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_experts", .format = kFp32, .scales = kPerExpert}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_experts_static", .activation = kRelu2NoMul, .format = kFp32, .values = kExact, .w2_bias = true, .scales = kPerExpert, .hidden = kStatic}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_experts_x", .activation = kRelu2NoMul, .values = kExact, .w13_bias = true, .w2_bias = true, .scales = kPerExpert, .hidden = kFp8Single, .use_ue8m0 = true}),
      sized({6, 3, 5, 96, 64}, {.name = "fp8_experts_x_static", .format = kFp32, .scales = kPerExpert, .hidden = kFp8Static}),
      sized({9, 1, 5, 160, 144}, {.name = "fp8_weight_on_input", .format = kFp32, .w13_bias = true, .weight_on_input = true, .scales = kBlocks}),
      sized({20, 3, 4, 160, 64}, {.name = "fp8_expert_map", .format = kFp32, .int64_ids = true, .num_global_experts = 12, .scales = kBlocks}),
      sized({20, 3, 16, 64, 48}, {.name = "fp8_empty_experts", .format = kFp32, .routing = kFew, .scales = kPerRow}),
      sized({9, 3, 4, 160, 144}, {.name = "fp8_rows_apart", .format = kFp32, .w13_bias = true, .w2_bias = true, .gap = 3, .scales = kBlocks}),
      sized({9, 3, 4, 160, 144}, {.name = "fp8_transposed", .activation = kSwigluoai, .w13_bias = true, .w2_bias = true, .transposed = true, .scales = kBlocks}),
      sized({60, 2, 3, 160, 144}, {.name = "fp8_many_tokens", .routing = kHot, .scales = kBlocks, .hidden = kFp8Rows}),
      sized({9, 3, 4, 256, 48}, {.name = "fp8_cancelling", .format = kFp32, .values = kCancelling, .scales = kBlocks}),
      sized({9, 3, 4, 64, 48}, {.name = "fp8_large", .values = kLarge, .scales = kPerExpert}),
      sized({9, 3, 4, 160, 48}, {.name = "fp8_zero", .values = kZero, .w2_bias = true, .scales = kBlocks}),
      sized({9, 3, 4, 64, 48}, {.name = "fp8_subnormal", .values = kSubnormal, .scales = kPerRow}),
      sized({20, 2, 16, 160, 48}, {.name = "fp8_special", .values = kSpecial, .scales = kBlocks}),
      sized({40, 1, 24, 128, 16}, {.name = "fp8_special_block", .activation = kRelu2NoMul, .values = kSpecial, .scales = kBlocks}),
      sized({20, 2, 16, 160, 48}, {.name = "fp8_special_relu2", .activation = kRelu2NoMul, .format = kFp32, .values = kSpecial, .scales = kPerRow, .use_ue8m0 = true}),
      sized({20, 2, 16, 160, 48}, {.name = "fp8_special_x", .values = kSpecial, .scales = kBlocks, .hidden = kFp8Rows}),
      sized({4, 2, 3, 256, 48}, {.name = "fp8_ties", .format = kFp32, .scales = kBlocks, .has_ties = true}),
      sized({4, 2, 3, 160, 48}, {.name = "fp8_tiny", .activation = kGeluNoMul, .format = kFp32, .scales = kBlocks, .is_tiny = true}),
  };
}
// clang-format on

/// A quotient of at least 1.
std::int64_t at_most(std::int64_t limit, std::int64_t divisor) {
  return std::max<std::int64_t>(1, limit / divisor);
}

}  // namespace

std::span<const FusedExpertsCase> fused_experts_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

FusedExpertsCase random_fused_experts_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  // Multiply-adds per element: a limit on the time of a case.
  constexpr std::int64_t kMaxReuse = 64;
  Case c;
  c.name = random_case_name(seed, max_elements);
  const FloatFormat formats[] = {kFp16, kBf16, kFp32};
  c.format = formats[random.below(std::ssize(formats))];
  c.router_format = random.one_in(2) ? kFp32 : formats[random.below(std::ssize(formats))];
  c.activation = static_cast<Activation>(random.below(std::ssize(kActivationNames)));
  // As models have them: some kernels take no other sizes.
  const bool has_multiples_of_8 = random.one_in(2);
  const auto size = [&](std::int64_t most) {
    const std::int64_t drawn = 1 + random.magnitude_below(std::max<std::int64_t>(1, most));
    return drawn >= 8 && has_multiples_of_8 ? drawn / 8 * 8 : drawn;
  };
  // Of 2 F H elements, the larger array of an expert.
  c.hidden_size = size(at_most(max_elements, 2));
  c.intermediate_size = size(at_most(max_elements, 2 * c.hidden_size));
  const std::int64_t per_expert = 2 * c.hidden_size * c.intermediate_size;
  c.num_experts = size(std::min<std::int64_t>(at_most(max_elements, per_expert), 300));
  c.top_k = 1 + random.below(std::min<std::int64_t>(10, at_most(max_elements, 20)));
  const std::int64_t most_tokens = std::min({max_elements / c.hidden_size, max_elements / c.top_k,
                                             kMaxReuse * max_elements / (per_expert * c.top_k)});
  c.num_tokens = random.magnitude_below(most_tokens + 1);
  // Drawn more often than the rest: values whose errors have tight bounds, and what models have.
  c.values = random.one_in(3)   ? kExact
             : random.one_in(2) ? kOrdinary
                                : static_cast<ExpertValues>(random.below(kNumExpertValues));
  if (random.one_in(2)) c.routing = static_cast<ExpertRouting>(random.below(kNumExpertRoutings));
  c.int64_ids = random.one_in(2);
  if (random.one_in(2)) c.num_global_experts = size(std::min<std::int64_t>(max_elements, 300));
  c.w13_bias = random.one_in(2);
  c.w2_bias = random.one_in(2);
  c.transposed = random.one_in(3);
  if (random.one_in(3)) c.gap = random.one_in(2) ? 8 : random.below(4);
  c.weight_on_input = c.top_k == 1 && random.one_in(2);
  c.batch_invariant = random.one_in(4);
  if (is_swigluoai(c.activation)) {
    const float parameters[] = {kNotGiven, 1, 0, -1.5F, 0.125F};
    const float limits[] = {kNotGiven, kInf, 1, 0.25F};
    c.swiglu_alpha = parameters[random.below(std::ssize(parameters))];
    c.swiglu_beta = parameters[random.below(std::ssize(parameters))];
    c.swiglu_limit = limits[random.below(std::ssize(limits))];
  }
  if (random.one_in(3)) {
    c.scales = static_cast<ExpertScales>(1 + random.below(3));
    const HiddenScales of_blocks[] = {kComputed, kComputed, kFp8Rows};
    const HiddenScales others[] = {kComputed, kStatic, kFp8Rows, kFp8Single, kFp8Static};
    c.hidden = c.scales == kBlocks ? of_blocks[random.below(std::ssize(of_blocks))]
                                   : others[random.below(std::ssize(others))];
    const bool computes = c.hidden != kStatic && c.hidden != kFp8Static;
    c.use_ue8m0 = computes && random.one_in(3);
    c.zero_groups = random.one_in(8);
    // As a size query of the C API says.
    if (c.hidden >= kFp8Rows) c.format = kBf16;
  }
  return c;
}

}  // namespace tessera::contract
