#include "fused_moe_cases.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_numbers.hpp"
#include "select_experts_arithmetic.hpp"
#include "tessera/fused_moe.hpp"

namespace tessera::contract {
namespace {

using Case = FusedMoeCase;
using Logits = LogitValues;
using Bias = BiasValues;
using Routing = SelectExpertsCase;
using Experts = FusedExpertsCase;
using enum Scoring;
using enum Activation;
using enum ExpertValues;

constexpr FloatFormat kBf16 = kBfloat16Format;
constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;

/// Tokens, slots, experts, hidden size and intermediate size of a case.
struct Sizes {
  std::int64_t tokens;
  std::int64_t slots;
  std::int64_t experts;
  std::int64_t hidden;
  std::int64_t intermediate;
};

/// The experts that the router knows.
std::int64_t num_routed(const Experts& c) {
  return c.num_global_experts > 0 ? c.num_global_experts : c.num_experts;
}

Case sized(Sizes sizes, std::string name, Routing routing, Experts experts) {
  experts.num_tokens = sizes.tokens;
  experts.top_k = sizes.slots;
  experts.num_experts = sizes.experts;
  experts.hidden_size = sizes.hidden;
  experts.intermediate_size = sizes.intermediate;
  routing.num_tokens = sizes.tokens;
  routing.top_k = sizes.slots;
  routing.num_experts = num_routed(experts);
  return {.name = std::move(name), .routing = std::move(routing), .experts = std::move(experts)};
}

Case with(bool weights, bool ids, Case c) {
  c.gives_weights = weights;
  c.gives_ids = ids;
  return c;
}

// clang-format off
std::vector<Case> make_table() {
  return {
      // Shards of models, made narrower.
      sized({1, 8, 16, 256, 96}, "decode", {.format = kBf16, .renormalize = true}, {}),
      sized({16, 8, 16, 256, 96}, "batch", {.format = kBf16, .renormalize = true}, {}),
      sized({65, 4, 8, 128, 96}, "prefill", {.renormalize = true}, {}),
      sized({9, 8, 256, 24, 8}, "deepseek_v3", {.scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .num_groups = 8, .topk_group = 4, .scaling_factor = 2.5F}, {}),
      sized({20, 4, 32, 64, 48}, "gpt_oss", {.format = kBf16, .renormalize = true}, {.activation = kSwigluoai, .w13_bias = true, .w2_bias = true, .transposed = true}),
      sized({12, 1, 16, 64, 48}, "llama4", {.format = kBf16, .scoring = kSigmoid}, {.weight_on_input = true}),
      sized({9, 6, 64, 64, 48}, "deepseek_v4", {.scoring = kSqrtSoftplus, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 1.5F}, {}),

      sized({0, 2, 4, 64, 32}, "no_tokens", {}, {}),
      with(true, true, sized({0, 2, 4, 64, 32}, "no_tokens_with_choice", {}, {})),
      sized({1, 1, 1, 1, 1}, "one_of_all", {}, {}),
      sized({9, 6, 6, 64, 48}, "all_experts", {.scoring = kSigmoid}, {.values = kExact}),
      sized({3, 33, 40, 24, 8}, "33_slots", {.format = kFp16}, {.format = kFp16}),
      sized({256, 8, 512, 24, 8}, "2048_pairs_of_512_experts", {.format = kBf16}, {.values = kExact}),
      sized({7, 4, 513, 24, 8}, "513_experts", {.renormalize = true}, {.values = kExact}),
      sized({5, 3, 7, 67, 33}, "odd_sizes_fp16", {.format = kFp16}, {.format = kFp16, .values = kExact}),
      sized({5, 3, 7, 67, 33}, "odd_sizes_fp32", {.format = kFp32}, {.format = kFp32, .values = kExact}),

      with(true, true, sized({9, 3, 8, 64, 48}, "with_choice", {.renormalize = true}, {.values = kExact})),
      with(true, false, sized({9, 3, 8, 64, 48}, "with_weights", {.format = kFp16}, {.values = kExact})),
      with(false, true, sized({9, 3, 8, 64, 48}, "with_ids", {.format = kBf16}, {.format = kFp32})),

      sized({20, 3, 8, 64, 48}, "no_valid_tokens", {.num_valid_tokens = 0}, {.w2_bias = true}),
      with(true, true, sized({20, 3, 8, 64, 48}, "7_valid_tokens", {.bias = Bias::kOrdinary, .num_valid_tokens = 7}, {.values = kExact})),
      sized({150, 2, 3, 64, 48}, "100_valid_tokens_of_150", {.format = kBf16, .num_valid_tokens = 100}, {.format = kFp16}),
      sized({20, 3, 8, 64, 48}, "negative_valid_tokens", {.num_valid_tokens = -5}, {}),

      sized({20, 3, 4, 64, 48}, "expert_map", {.renormalize = true}, {.values = kExact, .num_global_experts = 12}),
      with(true, true, sized({20, 3, 9, 64, 48}, "expert_map_fp16", {.format = kFp16, .bias = Bias::kOrdinary, .num_groups = 6, .topk_group = 3}, {.format = kFp16, .values = kExact, .num_global_experts = 18})),
      sized({20, 2, 9, 64, 48}, "short_expert_map", {.format = kBf16}, {.num_global_experts = 5}),

      with(true, true, sized({9, 3, 4, 64, 48}, "rows_apart", {.format = kBf16, .gap = 4}, {.values = kExact, .w13_bias = true, .w2_bias = true, .gap = 8})),
      sized({9, 3, 4, 63, 47}, "rows_apart_unaligned", {.format = kFp16, .gap = 1}, {.format = kFp16, .values = kExact, .gap = 1}),
      sized({9, 3, 4, 61, 45}, "transposed_apart", {.gap = 7}, {.format = kFp32, .values = kExact, .transposed = true, .gap = 3}),
      sized({9, 2, 5, 64, 48}, "batch_invariant", {}, {.batch_invariant = true}),
      sized({6, 3, 5, 64, 48}, "relu2_no_mul", {.scoring = kSigmoid}, {.activation = kRelu2NoMul, .values = kExact, .w13_bias = true, .w2_bias = true}),
      sized({6, 3, 5, 64, 48}, "swigluoai_parameters", {}, {.activation = kSwigluoaiUninterleave, .format = kFp16, .swiglu_alpha = -0.75F, .swiglu_beta = -2.5F, .swiglu_limit = 3}),

      sized({20, 3, 16, 64, 48}, "equal_logits", {.logits = Logits::kEqual}, {.values = kExact}),
      sized({20, 3, 16, 64, 48}, "special_logits", {.logits = Logits::kSpecial, .bias = Bias::kSpecial, .renormalize = true}, {}),
      with(true, true, sized({20, 3, 16, 64, 48}, "nan_tokens", {.scoring = kSigmoid, .logits = Logits::kNanTokens, .renormalize = true}, {.w2_bias = true})),
      sized({20, 3, 16, 64, 48}, "infinity", {.logits = Logits::kInfinity}, {.values = kExact}),
      sized({20, 2, 16, 64, 48}, "scaled_to_subnormals", {.scaling_factor = 1e-38F}, {}),
      sized({20, 2, 16, 64, 48}, "special", {.logits = Logits::kFew}, {.values = kSpecial}),
  };
}
// clang-format on

/// Any groups of the experts, of which enough stay for all slots.
void draw_groups(Routing* c, RandomNumbers* random) {
  c->num_groups = c->topk_group = 1;
  for (const std::int64_t num_groups : {2, 3, 4, 5, 8}) {
    if (c->num_experts % num_groups != 0 || random->one_in(2)) continue;
    const std::int64_t least = (c->top_k * num_groups - 1) / c->num_experts + 1;
    c->num_groups = num_groups;
    c->topk_group = least + random->below(num_groups - least + 1);
  }
}

/// Keeps what the arguments of a call are views of.
struct Made {
  FusedMoeArgs args;
  CaseArguments routing;
  CaseArguments experts;
};

}  // namespace

std::span<const FusedMoeCase> fused_moe_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

FusedMoeCase random_fused_moe_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  c.routing = random_select_experts_case(seed, max_elements);
  c.experts = random_fused_experts_case(seed, max_elements);
  // The op has no scales.
  c.experts.scales = ExpertScales::kNoScales;
  c.experts.hidden = HiddenScales::kComputed;
  c.experts.use_ue8m0 = false;
  c.experts.top_k = std::min(c.experts.top_k, num_routed(c.experts));
  c.experts.num_tokens = std::min(c.experts.num_tokens,
                                  std::max<std::int64_t>(1, max_elements / num_routed(c.experts)));
  c.routing.num_tokens = c.experts.num_tokens;
  c.routing.top_k = c.experts.top_k;
  c.routing.num_experts = num_routed(c.experts);
  draw_groups(&c.routing, &random);
  c.gives_weights = random.one_in(2);
  c.gives_ids = random.one_in(2);
  return c;
}

CaseArguments make_arguments(const FusedMoeCase& c, std::uint64_t seed) {
  auto made = std::make_shared<Made>();
  made->routing = make_arguments(c.routing, seed);
  const auto& routing = made->routing.as<SelectExpertsArgs>();
  const SelectedExperts selected = select_by_contract(routing);
  made->experts = make_arguments(
      c.experts, std::vector<std::int64_t>(selected.ids.begin(), selected.ids.end()), seed);
  const auto& experts = made->experts.as<FusedExpertsArgs>();
  FusedMoeArgs& args = made->args;
  args.x = experts.x;
  args.w13 = experts.w13;
  args.w2 = experts.w2;
  args.router_logits = routing.router_logits;
  args.correction_bias = routing.correction_bias;
  args.num_valid_tokens = routing.num_valid_tokens;
  args.expert_map = experts.expert_map;
  args.w13_bias = experts.w13_bias;
  args.w2_bias = experts.w2_bias;
  args.output = experts.output;
  args.top_k = routing.top_k;
  args.scoring = routing.scoring;
  args.renormalize = routing.renormalize;
  args.num_expert_group = routing.num_expert_group;
  args.topk_group = routing.topk_group;
  args.routed_scaling_factor = routing.routed_scaling_factor;
  args.activation = experts.activation;
  args.apply_router_weight_on_input = experts.apply_router_weight_on_input;
  args.batch_invariant = experts.batch_invariant;
  args.swiglu_alpha = experts.swiglu_alpha;
  args.swiglu_beta = experts.swiglu_beta;
  args.swiglu_limit = experts.swiglu_limit;
  if (c.gives_weights) args.topk_weights = routing.topk_weights;
  if (c.gives_ids) args.topk_ids = routing.topk_ids;
  return {"fused_moe", std::shared_ptr<void>(made, &made->args)};
}

}  // namespace tessera::contract
