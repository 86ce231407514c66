#include "moe_sum_cases.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_floats.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = MoeSumCase;
using enum FloatValues;

constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;

// clang-format off
std::vector<Case> make_table() {
  return {
      // Tokens x slots x hidden size, as models have them; bfloat16 by default.
      {.name = "1x8x7168", .num_tokens = 1, .top_k = 8, .hidden_size = 7168, .weighted = true},
      {.name = "1x8x2048", .num_tokens = 1, .top_k = 8, .hidden_size = 2048},
      {.name = "16x8x2048", .num_tokens = 16, .top_k = 8, .hidden_size = 2048, .weighted = true},
      {.name = "7x4x2880", .num_tokens = 7, .top_k = 4, .hidden_size = 2880},
      {.name = "5x6x5120_fp16", .num_tokens = 5, .top_k = 6, .hidden_size = 5120, .format = kFp16, .weighted = true},
      {.name = "9x2x4096_fp16", .num_tokens = 9, .top_k = 2, .hidden_size = 4096, .format = kFp16},
      {.name = "4x10x2048_fp32", .num_tokens = 4, .top_k = 10, .hidden_size = 2048, .format = kFp32, .weighted = true},
      {.name = "3x8x4096_fp32", .num_tokens = 3, .top_k = 8, .hidden_size = 4096, .format = kFp32},
      {.name = "130x8x4096", .num_tokens = 130, .top_k = 8, .hidden_size = 4096, .weighted = true},

      {.name = "no_tokens", .top_k = 8, .hidden_size = 64, .weighted = true},
      {.name = "no_columns", .num_tokens = 5, .top_k = 3, .weighted = true},
      {.name = "one_element", .num_tokens = 1, .hidden_size = 1},
      {.name = "one_column", .num_tokens = 40, .top_k = 5, .hidden_size = 1, .weighted = true},
      {.name = "one_column_fp32", .num_tokens = 40, .top_k = 5, .hidden_size = 1, .format = kFp32},
      {.name = "one_slot", .num_tokens = 12, .hidden_size = 300, .values = kAnyBits},
      {.name = "one_slot_fp16", .num_tokens = 12, .hidden_size = 304, .format = kFp16, .values = kAnyBits},
      {.name = "one_slot_fp32", .num_tokens = 12, .hidden_size = 304, .format = kFp32, .values = kAnyBits},
      {.name = "one_slot_weighted", .num_tokens = 12, .hidden_size = 304, .weighted = true, .values = kSpecial},
      {.name = "odd_columns", .num_tokens = 6, .top_k = 3, .hidden_size = 1237, .weighted = true},
      {.name = "odd_columns_fp16", .num_tokens = 6, .top_k = 7, .hidden_size = 1031, .format = kFp16},
      {.name = "odd_columns_fp32", .num_tokens = 6, .top_k = 9, .hidden_size = 515, .format = kFp32, .weighted = true},
      {.name = "7_columns", .num_tokens = 50, .top_k = 4, .hidden_size = 7},
      {.name = "8_columns", .num_tokens = 50, .top_k = 4, .hidden_size = 8},
      {.name = "33_columns", .num_tokens = 50, .top_k = 4, .hidden_size = 33, .weighted = true},
      {.name = "1025_columns", .num_tokens = 3, .top_k = 2, .hidden_size = 1025},
      {.name = "15_slots", .num_tokens = 9, .top_k = 15, .hidden_size = 256, .weighted = true},
      {.name = "16_slots", .num_tokens = 9, .top_k = 16, .hidden_size = 256},
      {.name = "17_slots", .num_tokens = 9, .top_k = 17, .hidden_size = 256, .format = kFp16, .weighted = true},
      {.name = "20_slots_fp32", .num_tokens = 9, .top_k = 20, .hidden_size = 256, .format = kFp32, .values = kCancelling},
      {.name = "1000_slots", .num_tokens = 2, .top_k = 1000, .hidden_size = 40, .weighted = true},

      {.name = "rows_apart", .num_tokens = 9, .top_k = 4, .hidden_size = 128, .weighted = true, .slot_gap = 8, .token_gap = 64, .output_gap = 16},
      {.name = "rows_apart_fp32", .num_tokens = 9, .top_k = 4, .hidden_size = 128, .format = kFp32, .slot_gap = 4, .token_gap = 12, .output_gap = 4},
      {.name = "rows_apart_unaligned", .num_tokens = 9, .top_k = 5, .hidden_size = 128, .slot_gap = 3, .token_gap = 1, .output_gap = 7},
      {.name = "output_rows_unaligned", .num_tokens = 9, .top_k = 5, .hidden_size = 128, .format = kFp16, .output_gap = 1},
      {.name = "tokens_apart", .num_tokens = 9, .top_k = 5, .hidden_size = 256, .token_gap = 256},

      {.name = "any_bits", .num_tokens = 20, .top_k = 8, .hidden_size = 512, .weighted = true, .values = kAnyBits},
      {.name = "any_bits_fp16", .num_tokens = 20, .top_k = 8, .hidden_size = 512, .format = kFp16, .values = kAnyBits},
      {.name = "any_bits_fp32", .num_tokens = 20, .top_k = 3, .hidden_size = 512, .format = kFp32, .weighted = true, .values = kAnyBits},
      {.name = "special", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .weighted = true, .values = kSpecial},
      {.name = "special_fp16", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp16, .values = kSpecial},
      {.name = "special_fp32", .num_tokens = 20, .top_k = 2, .hidden_size = 512, .format = kFp32, .values = kSpecial},
      {.name = "subnormal", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .weighted = true, .values = kSubnormal},
      {.name = "subnormal_fp16", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp16, .weighted = true, .values = kSubnormal},
      {.name = "subnormal_fp32", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp32, .values = kSubnormal},
      {.name = "huge", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .values = kHuge},
      {.name = "huge_fp16", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp16, .weighted = true, .values = kHuge},
      {.name = "huge_fp32", .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp32, .weighted = true, .values = kHuge},
      {.name = "cancelling", .num_tokens = 20, .top_k = 8, .hidden_size = 512, .values = kCancelling},
      {.name = "cancelling_fp16", .num_tokens = 20, .top_k = 6, .hidden_size = 512, .format = kFp16, .weighted = true, .values = kCancelling},
      {.name = "cancelling_fp32", .num_tokens = 20, .top_k = 8, .hidden_size = 512, .format = kFp32, .weighted = true, .values = kCancelling},
  };
}
// clang-format on

/// A weight: an ordinary one if the inputs alone make the case.
std::uint32_t any_weight(FloatValues values, RandomNumbers& random) {
  const bool is_ordinary = values != kAnyBits && values != kSpecial;
  if (!is_ordinary) return random_float(kFp32, values, random);
  return float_with_exponent(kFp32, kFp32.max_exponent - 8, kFp32.max_exponent, random);
}

/// The number of elements from the first to the last, gaps included; 0 if there are none.
std::int64_t spanned(std::initializer_list<std::int64_t> shape,
                     std::initializer_list<std::int64_t> strides) {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape.begin()[i] == 0) return 0;
    last += (shape.begin()[i] - 1) * strides.begin()[i];
  }
  return last + 1;
}

}  // namespace

std::span<const MoeSumCase> moe_sum_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

MoeSumCase random_moe_sum_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  const FloatFormat formats[] = {kFloat16Format, kBfloat16Format, kFloat32Format};
  c.format = formats[random.below(std::ssize(formats))];
  c.hidden_size = random.magnitude_below(max_elements + 1);
  if (random.one_in(2)) c.hidden_size = c.hidden_size / 8 * 8;
  const std::int64_t max_rows = max_elements / std::max<std::int64_t>(1, c.hidden_size);
  c.top_k = std::max<std::int64_t>(1, random.below(std::min<std::int64_t>(max_rows, 20) + 1));
  c.num_tokens = random.below(std::min<std::int64_t>(max_rows / c.top_k, kMaxRandomSize) + 1);
  c.weighted = random.one_in(2);
  // Drawn twice as often as the rest: what engines sum.
  c.values = random.one_in(3) ? kOrdinary : static_cast<FloatValues>(random.below(kNumFloatValues));
  if (random.one_in(3)) {
    const std::int64_t unit = random.one_in(2) ? 8 : 1;
    c.slot_gap = unit * random.below(5);
    c.token_gap = unit * random.below(5);
    c.output_gap = unit * random.below(5);
  }
  return c;
}

CaseArguments make_arguments(const MoeSumCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  const DLDataType dtype = dtype_of(c.format);
  const std::int64_t slot_stride = c.hidden_size + c.slot_gap;
  const std::int64_t token_stride = c.top_k * slot_stride + c.token_gap;
  const std::int64_t output_stride = c.hidden_size + c.output_gap;

  // The gaps between rows hold NaNs, which show in any sum that reads them.
  std::vector<std::uint32_t> input(
      static_cast<std::size_t>(
          spanned({c.num_tokens, c.top_k, c.hidden_size}, {token_stride, slot_stride, 1})),
      c.format.nan());
  for (std::int64_t token = 0; token < c.num_tokens; ++token) {
    for (std::int64_t slot = 0; slot < c.top_k; ++slot) {
      for (std::int64_t column = 0; column < c.hidden_size; ++column) {
        const std::int64_t at = token * token_stride + slot * slot_stride + column;
        std::uint32_t& bits = input[static_cast<std::size_t>(at)];
        if (c.values == kCancelling && slot % 2 == 1) {
          bits = input[static_cast<std::size_t>(at - slot_stride)] ^ c.format.sign_bit() ^
                 random_bits(random, 1);
        } else {
          bits = random_float(c.format, c.values, random);
        }
      }
    }
  }
  CaseBuilder<MoeSumArgs> made("moe_sum");
  MoeSumArgs& args = made.args();
  args.input = made.input(bytes_of(input, c.format), dtype, {c.num_tokens, c.top_k, c.hidden_size},
                          {token_stride, slot_stride, 1});
  if (c.weighted) {
    std::vector<std::uint32_t> weights(static_cast<std::size_t>(c.num_tokens * c.top_k));
    for (std::uint32_t& weight : weights) weight = any_weight(c.values, random);
    args.topk_weights = made.input(bytes_of(weights, kFp32), kFloat32, {c.num_tokens, c.top_k});
  }
  args.output = strided(output(dtype, {c.num_tokens, c.hidden_size}), {output_stride, 1});
  return made.finish();
}

}  // namespace tessera::contract
