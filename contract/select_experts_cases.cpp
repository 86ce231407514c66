#include "select_experts_cases.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <iterator>
#include <limits>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_floats.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = SelectExpertsCase;
using Logits = LogitValues;
using Bias = BiasValues;
using enum Scoring;

constexpr FloatFormat kBf16 = kBfloat16Format;
constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;

Case sized(std::int64_t tokens, std::int64_t experts, std::int64_t top_k, Case c) {
  c.num_tokens = tokens;
  c.num_experts = experts;
  c.top_k = top_k;
  return c;
}

/// `topk_group` of `num_groups` groups.
Case grouped(std::int64_t topk_group, std::int64_t num_groups, Case c) {
  c.topk_group = topk_group;
  c.num_groups = num_groups;
  return c;
}

// clang-format off
std::vector<Case> make_table() {
  return {
      // Tokens, experts and slots, as models have them.
      sized(1, 8, 2, {.name = "mixtral", .format = kBf16, .renormalize = true}),
      sized(17, 128, 8, {.name = "qwen3", .format = kBf16, .renormalize = true}),
      sized(300, 128, 8, {.name = "qwen3_of_many", .renormalize = true}),
      sized(9, 60, 4, {.name = "qwen2", .format = kBf16}),
      sized(9, 512, 10, {.name = "qwen3_next", .format = kBf16, .renormalize = true}),
      sized(9, 64, 6, {.name = "deepseek_v2_lite"}),
      grouped(3, 8, sized(9, 160, 6, {.name = "deepseek_v2", .scaling_factor = 16})),
      grouped(4, 8, sized(1, 256, 8, {.name = "deepseek_v3_one", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})),
      grouped(4, 8, sized(130, 256, 8, {.name = "deepseek_v3", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})),
      grouped(4, 8, sized(33, 256, 8, {.name = "deepseek_v3_bf16", .format = kBf16, .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.5F})),
      sized(12, 384, 8, {.name = "kimi_k2", .scoring = kSigmoid, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 2.827F}),
      sized(12, 256, 6, {.name = "deepseek_v4", .scoring = kSqrtSoftplus, .bias = Bias::kOrdinary, .renormalize = true, .scaling_factor = 1.5F}),
      sized(12, 16, 1, {.name = "llama4", .format = kBf16, .scoring = kSigmoid}),

      sized(0, 64, 6, {.name = "no_tokens", .bias = Bias::kOrdinary}),
      sized(1, 1, 1, {.name = "one_of_all"}),
      sized(5, 1, 1, {.name = "one_expert", .scoring = kSigmoid, .bias = Bias::kSpecial, .renormalize = true}),
      sized(9, 2, 1, {.name = "2_experts", .format = kFp16}),
      sized(9, 2, 2, {.name = "2_of_2_experts", .scoring = kSqrtSoftplus, .renormalize = true}),
      sized(9, 7, 3, {.name = "7_experts", .format = kBf16, .bias = Bias::kOrdinary}),
      sized(9, 31, 5, {.name = "31_experts", .scoring = kSigmoid, .renormalize = true}),
      sized(9, 32, 32, {.name = "32_of_32_experts"}),
      sized(9, 33, 8, {.name = "33_experts", .format = kFp16, .renormalize = true}),
      sized(9, 33, 33, {.name = "33_of_33_experts", .bias = Bias::kOrdinary}),
      sized(9, 63, 8, {.name = "63_experts", .format = kBf16, .scoring = kSqrtSoftplus}),
      sized(9, 64, 63, {.name = "63_of_64_experts", .renormalize = true}),
      sized(9, 64, 64, {.name = "64_of_64_experts", .scoring = kSigmoid, .logits = Logits::kFew}),
      sized(9, 65, 64, {.name = "64_of_65_experts", .logits = Logits::kFew, .bias = Bias::kTies}),
      sized(9, 257, 9, {.name = "257_experts", .bias = Bias::kOrdinary, .renormalize = true}),
      sized(9, 513, 8, {.name = "513_experts", .format = kBf16}),
      sized(5, 1000, 20, {.name = "1000_experts", .scoring = kSqrtSoftplus, .bias = Bias::kOrdinary}),
      sized(2, 1000, 1000, {.name = "1000_of_1000_experts", .format = kFp16, .renormalize = true}),
      sized(3, 4096, 8, {.name = "4096_experts", .renormalize = true}),
      sized(1, 4096, 4096, {.name = "4096_of_4096_experts", .scoring = kSigmoid, .bias = Bias::kOrdinary}),

      grouped(8, 8, sized(9, 64, 8, {.name = "all_groups", .scoring = kSigmoid, .bias = Bias::kOrdinary})),
      grouped(1, 1, sized(9, 64, 8, {.name = "one_group", .scoring = kSigmoid, .bias = Bias::kOrdinary})),
      grouped(1, 8, sized(9, 64, 8, {.name = "all_of_one_group", .format = kBf16})),
      grouped(2, 6, sized(9, 60, 8, {.name = "groups_of_10", .bias = Bias::kOrdinary, .renormalize = true})),
      grouped(5, 6, sized(9, 60, 50, {.name = "all_of_5_groups", .logits = Logits::kFew})),
      grouped(9, 31, sized(9, 31, 8, {.name = "groups_of_one", .scoring = kSigmoid, .bias = Bias::kOrdinary})),
      grouped(9, 31, sized(9, 31, 9, {.name = "groups_of_one_ties", .logits = Logits::kFew})),
      grouped(20, 32, sized(9, 64, 8, {.name = "groups_of_two", .scoring = kSqrtSoftplus, .bias = Bias::kOrdinary})),
      grouped(2, 4, sized(30, 32, 4, {.name = "groups_ties", .logits = Logits::kFew})),
      grouped(2, 4, sized(30, 32, 4, {.name = "groups_ties_bias", .logits = Logits::kFew, .bias = Bias::kTies})),
      grouped(2, 4, sized(9, 32, 4, {.name = "groups_equal", .scoring = kSigmoid, .logits = Logits::kEqual, .bias = Bias::kEqual})),
      grouped(3, 8, sized(30, 64, 8, {.name = "groups_special", .scoring = kSigmoid, .logits = Logits::kSpecial, .bias = Bias::kSpecial, .renormalize = true})),
      grouped(3, 8, sized(30, 64, 8, {.name = "groups_huge_bias", .bias = Bias::kHuge, .renormalize = true})),
      grouped(3, 8, sized(30, 64, 8, {.name = "groups_infinity", .logits = Logits::kInfinity, .bias = Bias::kOrdinary})),
      grouped(3, 8, sized(30, 64, 8, {.name = "groups_minus_infinity", .logits = Logits::kMinusInfinity, .bias = Bias::kOrdinary, .renormalize = true})),
      grouped(100, 256, sized(2, 1024, 32, {.name = "256_groups", .format = kBf16, .bias = Bias::kOrdinary})),

      sized(30, 64, 8, {.name = "few_values", .format = kBf16, .logits = Logits::kFew, .renormalize = true}),
      sized(30, 64, 8, {.name = "few_values_bias", .scoring = kSigmoid, .logits = Logits::kFew, .bias = Bias::kTies}),
      sized(9, 160, 8, {.name = "equal", .logits = Logits::kEqual, .renormalize = true}),
      sized(9, 160, 8, {.name = "equal_bias", .scoring = kSqrtSoftplus, .logits = Logits::kEqual, .bias = Bias::kEqual}),
      sized(9, 64, 8, {.name = "zeros", .format = kFp16, .logits = Logits::kZeros}),
      sized(9, 64, 8, {.name = "zeros_sigmoid", .scoring = kSigmoid, .logits = Logits::kZeros, .bias = Bias::kEqual}),
      sized(30, 64, 8, {.name = "wide", .logits = Logits::kWide, .renormalize = true}),
      sized(30, 64, 64, {.name = "wide_sigmoid", .scoring = kSigmoid, .logits = Logits::kWide}),
      sized(30, 64, 64, {.name = "wide_sqrt_softplus", .scoring = kSqrtSoftplus, .logits = Logits::kWide, .renormalize = true}),
      sized(30, 64, 8, {.name = "wide_bias", .format = kBf16, .logits = Logits::kWide, .bias = Bias::kOrdinary, .renormalize = true}),
      sized(30, 64, 8, {.name = "special", .logits = Logits::kSpecial, .renormalize = true}),
      sized(30, 64, 8, {.name = "special_sigmoid_fp16", .format = kFp16, .scoring = kSigmoid, .logits = Logits::kSpecial, .bias = Bias::kSpecial}),
      sized(30, 64, 8, {.name = "special_sqrt_softplus_bf16", .format = kBf16, .scoring = kSqrtSoftplus, .logits = Logits::kSpecial, .bias = Bias::kOrdinary, .renormalize = true}),
      sized(30, 7, 3, {.name = "special_of_7", .logits = Logits::kSpecial, .bias = Bias::kSpecial}),
      sized(9, 40, 8, {.name = "nans", .format = kBf16, .logits = Logits::kNans, .renormalize = true}),
      sized(9, 40, 8, {.name = "nans_bias", .scoring = kSigmoid, .logits = Logits::kNans, .bias = Bias::kOrdinary, .renormalize = true}),
      sized(9, 40, 8, {.name = "nan_tokens", .format = kFp16, .logits = Logits::kNanTokens}),
      sized(9, 40, 8, {.name = "nan_tokens_bias", .scoring = kSqrtSoftplus, .logits = Logits::kNanTokens, .bias = Bias::kOrdinary, .renormalize = true}),
      sized(9, 40, 8, {.name = "minus_infinity", .scoring = kSqrtSoftplus, .logits = Logits::kMinusInfinity}),
      sized(9, 40, 40, {.name = "infinity", .logits = Logits::kInfinity}),
      sized(9, 40, 40, {.name = "infinity_sigmoid", .scoring = kSigmoid, .logits = Logits::kInfinity, .renormalize = true}),
      sized(9, 40, 40, {.name = "infinity_sqrt_softplus", .scoring = kSqrtSoftplus, .logits = Logits::kInfinity, .renormalize = true}),
      sized(9, 40, 8, {.name = "infinity_bias", .format = kBf16, .logits = Logits::kInfinity, .bias = Bias::kOrdinary, .renormalize = true}),
      sized(20, 40, 8, {.name = "huge", .logits = Logits::kHuge, .renormalize = true}),
      sized(20, 40, 40, {.name = "huge_sigmoid_fp16", .format = kFp16, .scoring = kSigmoid, .logits = Logits::kHuge}),
      sized(20, 40, 40, {.name = "huge_sqrt_softplus", .scoring = kSqrtSoftplus, .logits = Logits::kHuge, .bias = Bias::kOrdinary, .scaling_factor = 1e30F}),
      sized(20, 40, 8, {.name = "subnormal", .logits = Logits::kSubnormal}),
      sized(20, 40, 8, {.name = "subnormal_bf16", .format = kBf16, .scoring = kSigmoid, .logits = Logits::kSubnormal, .bias = Bias::kOrdinary}),
      sized(30, 64, 8, {.name = "any_bits", .logits = Logits::kAnyBits, .bias = Bias::kAnyBits, .renormalize = true}),
      sized(30, 64, 8, {.name = "any_bits_bf16", .format = kBf16, .scoring = kSigmoid, .logits = Logits::kAnyBits}),
      sized(30, 64, 8, {.name = "any_bits_fp16", .format = kFp16, .scoring = kSqrtSoftplus, .logits = Logits::kAnyBits, .bias = Bias::kAnyBits}),
      sized(30, 64, 8, {.name = "bias_ties", .scoring = kSigmoid, .bias = Bias::kTies}),
      sized(30, 64, 8, {.name = "bias_special", .bias = Bias::kSpecial, .renormalize = true}),
      sized(30, 64, 8, {.name = "bias_huge", .format = kBf16, .scoring = kSqrtSoftplus, .bias = Bias::kHuge}),

      sized(20, 64, 8, {.name = "scaled", .format = kBf16, .scaling_factor = 2.5F}),
      sized(20, 64, 8, {.name = "scaled_negative", .scoring = kSigmoid, .renormalize = true, .scaling_factor = -0.75F}),
      sized(20, 64, 8, {.name = "scaled_by_zero", .renormalize = true, .scaling_factor = 0}),
      sized(20, 64, 8, {.name = "scaled_to_subnormals", .scaling_factor = 1e-38F}),

      sized(20, 64, 8, {.name = "no_valid_tokens", .bias = Bias::kOrdinary, .num_valid_tokens = 0}),
      sized(20, 64, 8, {.name = "7_valid_tokens", .format = kBf16, .renormalize = true, .num_valid_tokens = 7}),
      sized(300, 64, 8, {.name = "100_valid_tokens_of_300", .scoring = kSigmoid, .num_valid_tokens = 100}),
      sized(20, 64, 8, {.name = "all_tokens_valid", .num_valid_tokens = 20}),
      sized(20, 64, 8, {.name = "negative_valid_tokens", .num_valid_tokens = -5}),
      sized(20, 64, 8, {.name = "too_many_valid_tokens", .num_valid_tokens = std::numeric_limits<std::int32_t>::max()}),
      sized(0, 64, 8, {.name = "no_tokens_5_valid", .num_valid_tokens = 5}),

      sized(9, 64, 8, {.name = "rows_apart", .format = kBf16, .renormalize = true, .gap = 64}),
      sized(9, 60, 8, {.name = "rows_apart_unaligned", .format = kFp16, .bias = Bias::kOrdinary, .gap = 1}),
      sized(9, 33, 8, {.name = "rows_apart_fp32", .scoring = kSigmoid, .num_valid_tokens = 4, .gap = 7}),
      sized(1, 33, 8, {.name = "one_row_apart", .gap = 100}),
  };
}
// clang-format on

/// The sum of four uniform numbers, of standard deviation 1.15.
double nearly_normal(RandomNumbers& random) {
  std::int64_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += random.below(1 << 16) - (1 << 15);
  return static_cast<double>(sum) * 0x1p-15;
}

std::uint32_t rounded_bits(FloatFormat format, double value) {
  return bits_of(format, rounded(format, value));
}

/// A NaN of any sign and mantissa.
std::uint32_t any_nan(FloatFormat format, RandomNumbers& random) {
  const std::uint32_t mantissa = 1 + random_bits(random, format.precision - 2);
  return format.infinity() | mantissa | (random.one_in(2) ? format.sign_bit() : 0);
}

/// `equal` is the number that all logits of the case have if they are equal.
std::uint32_t any_logit(const Case& c, std::int64_t token, double equal, RandomNumbers& random) {
  const FloatFormat format = c.format;
  const std::uint32_t minus_infinity = format.infinity() | format.sign_bit();
  switch (c.logits) {
    case Logits::kWide:
      return rounded_bits(format, 50 * nearly_normal(random));
    case Logits::kFew:
      return rounded_bits(format, static_cast<double>(random.below(5)) / 2 - 1);
    case Logits::kEqual:
      return rounded_bits(format, equal);
    case Logits::kZeros:
      return random.one_in(2) ? format.sign_bit() : 0;
    case Logits::kSpecial:
      return random_float(format, FloatValues::kSpecial, random);
    case Logits::kNans:
      return any_nan(format, random);
    case Logits::kNanTokens:
      if (token % 4 == 1) return any_nan(format, random);
      if (token % 4 == 3) return minus_infinity;
      break;
    case Logits::kMinusInfinity:
      return minus_infinity;
    case Logits::kInfinity:
      if (random.one_in(3)) return format.infinity();
      if (random.one_in(3)) return minus_infinity;
      break;
    case Logits::kHuge:
      return random_float(format, FloatValues::kHuge, random);
    case Logits::kSubnormal:
      return random_float(format, FloatValues::kSubnormal, random);
    case Logits::kAnyBits:
      return random_float(format, FloatValues::kAnyBits, random);
    case Logits::kOrdinary:
      break;
  }
  return rounded_bits(format, nearly_normal(random));
}

std::uint32_t any_bias(const Case& c, RandomNumbers& random) {
  switch (c.bias) {
    case Bias::kTies:
      // Half an ulp of the larger ones is 1/4 or more.
      return rounded_bits(kFp32, static_cast<double>(random.below(4)) * 0x1p22);
    case Bias::kEqual:
      return 0;
    case Bias::kSpecial:
      return random_float(kFp32, FloatValues::kSpecial, random);
    case Bias::kHuge:
      return random_float(kFp32, FloatValues::kHuge, random);
    case Bias::kAnyBits:
      return random_float(kFp32, FloatValues::kAnyBits, random);
    default:
      break;
  }
  const double size = c.scoring == kSoftmax ? 2 / static_cast<double>(c.num_experts) : 0.25;
  return rounded_bits(kFp32, size * nearly_normal(random));
}

/// A divisor of n.
std::int64_t any_divisor(std::int64_t n, RandomNumbers& random) {
  std::vector<std::int64_t> divisors;
  for (std::int64_t d = 1; d <= n; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors[static_cast<std::size_t>(random.below(std::ssize(divisors)))];
}

std::int64_t any_num_experts(std::int64_t most, RandomNumbers& random) {
  constexpr std::int64_t kInteresting[] = {1,  2,   7,   8,   31,  32,  33,  60,  63,   64,
                                           65, 128, 160, 256, 257, 384, 512, 513, 1000, 4096};
  const std::int64_t drawn = random.one_in(3)
                                 ? 1 + random.magnitude_below(most)
                                 : kInteresting[random.below(std::ssize(kInteresting))];
  return std::min(drawn, most);
}

}  // namespace

std::span<const SelectExpertsCase> select_experts_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

SelectExpertsCase random_select_experts_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  const FloatFormat formats[] = {kFp16, kBf16, kFp32};
  c.format = formats[random.below(std::ssize(formats))];
  c.scoring = static_cast<Scoring>(random.below(std::ssize(kScoringNames)));
  c.num_experts = any_num_experts(std::clamp<std::int64_t>(max_elements, 1, 4096), random);
  if (random.one_in(2)) {
    c.num_groups = any_divisor(c.num_experts, random);
    c.topk_group = 1 + random.below(c.num_groups);
  }
  const std::int64_t most_slots = c.num_experts / c.num_groups * c.topk_group;
  constexpr std::int64_t kUsual[] = {1, 2, 4, 6, 8, 10};
  c.top_k = random.one_in(4) ? 1 + random.magnitude_below(most_slots)
                             : std::min(most_slots, kUsual[random.below(std::ssize(kUsual))]);
  if (random.one_in(8)) c.top_k = most_slots;
  // Steps of the reference per logit: a limit on the time of a case.
  constexpr std::int64_t kMaxSteps = 512;
  const std::int64_t most_tokens =
      std::min(max_elements / c.num_experts,
               1 + kMaxSteps * max_elements / (c.num_experts * (c.top_k + c.num_groups)));
  c.num_tokens = random.magnitude_below(most_tokens + 1);
  // Drawn more often than the rest: what models have.
  if (random.one_in(2)) c.logits = static_cast<Logits>(random.below(kNumLogitValues));
  if (random.one_in(3)) c.bias = static_cast<Bias>(random.below(kNumBiasValues));
  if (random.one_in(3)) c.bias = Bias::kOrdinary;
  c.renormalize = random.one_in(2);
  constexpr float kFactors[] = {2.5F, 16, -0.75F, 0, 1e-38F, 1e38F};
  if (random.one_in(3)) c.scaling_factor = kFactors[random.below(std::ssize(kFactors))];
  if (random.one_in(3)) {
    c.num_valid_tokens = random.one_in(4)
                             ? any_int32(random)
                             : static_cast<std::int32_t>(random.below(c.num_tokens + 2));
  }
  if (random.one_in(3)) c.gap = random.one_in(2) ? 8 : random.below(5);
  return c;
}

CaseArguments make_arguments(const SelectExpertsCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  const std::int64_t stride = c.num_experts + c.gap;
  const std::int64_t num_valid =
      c.num_valid_tokens ? std::clamp<std::int64_t>(*c.num_valid_tokens, 0, c.num_tokens)
                         : c.num_tokens;
  const std::int64_t spanned = c.num_tokens == 0 ? 0 : c.num_tokens * stride - c.gap;
  std::vector<std::uint32_t> logits(static_cast<std::size_t>(spanned), c.format.nan());
  const double equal = nearly_normal(random);
  for (std::int64_t token = 0; token < num_valid; ++token) {
    for (std::int64_t e = 0; e < c.num_experts; ++e) {
      logits[static_cast<std::size_t>(token * stride + e)] = any_logit(c, token, equal, random);
    }
  }
  CaseBuilder<SelectExpertsArgs> made("select_experts");
  SelectExpertsArgs& args = made.args();
  args.router_logits = made.input(bytes_of(logits, c.format), dtype_of(c.format),
                                  {c.num_tokens, c.num_experts}, {stride, 1});
  if (c.bias != Bias::kNone) {
    std::vector<std::uint32_t> bias(static_cast<std::size_t>(c.num_experts));
    for (std::uint32_t& bits : bias) bits = any_bias(c, random);
    args.correction_bias = made.input(bytes_of(bias, kFp32), kFloat32, {c.num_experts});
  }
  if (c.num_valid_tokens) args.num_valid_tokens = made.input({*c.num_valid_tokens});
  args.topk_weights = output(kFloat32, {c.num_tokens, c.top_k});
  args.topk_ids = output(kInt32, {c.num_tokens, c.top_k});
  args.top_k = c.top_k;
  args.scoring = c.scoring;
  args.renormalize = c.renormalize;
  args.num_expert_group = c.num_groups;
  args.topk_group = c.topk_group;
  args.routed_scaling_factor = c.scaling_factor;
  return made.finish();
}

}  // namespace tessera::contract
