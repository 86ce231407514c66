#include "quantize_fp8_cases.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = QuantizeFp8Case;
using enum FloatValues;
using enum Fp8Group;
using Fp8Scales::kComputed;
using Fp8Scales::kGiven;
using Fp8Scales::kUe8m0;

constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;
constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
constexpr Fp8Scales kAnyScales = Fp8Scales::kAnyBits;

// clang-format off
std::vector<Case> make_table() {
  return {
      // Tokens x hidden size, as models have them; bfloat16 by default.
      {.name = "1x7168/1x128", .num_tokens = 1, .hidden_size = 7168, .group = k1x128},
      {.name = "16x7168/1x128", .num_tokens = 16, .hidden_size = 7168, .group = k1x128, .scales = kUe8m0},
      {.name = "33x2048/row", .num_tokens = 33, .hidden_size = 2048, .group = kRow},
      {.name = "33x4096_fp16/row", .num_tokens = 33, .hidden_size = 4096, .group = kRow, .format = kFp16},
      {.name = "64x2880/tensor", .num_tokens = 64, .hidden_size = 2880},
      {.name = "64x4096/tensor_given", .num_tokens = 64, .hidden_size = 4096, .scales = kGiven},
      {.name = "512x1536/128x128", .num_tokens = 512, .hidden_size = 1536, .group = k128x128},
      {.name = "256x2048_fp32/128x128", .num_tokens = 256, .hidden_size = 2048, .group = k128x128, .format = kFp32, .scales = kUe8m0},
      {.name = "130x7168/tensor", .num_tokens = 130, .hidden_size = 7168},

      // Rows of which threads read a part twice.
      {.name = "5x14336_fp32/row", .num_tokens = 5, .hidden_size = 14336, .group = kRow, .format = kFp32},
      {.name = "3x40000/row_ue8m0", .num_tokens = 3, .hidden_size = 40000, .group = kRow, .scales = kUe8m0},

      {.name = "no_tokens", .hidden_size = 64},
      {.name = "no_tokens/row", .hidden_size = 64, .group = kRow},
      {.name = "no_tokens/1x128", .hidden_size = 64, .group = k1x128},
      {.name = "no_tokens/128x128", .hidden_size = 64, .group = k128x128},
      {.name = "no_columns/tensor", .num_tokens = 5},
      {.name = "no_columns/row", .num_tokens = 5, .group = kRow, .scales = kUe8m0},
      {.name = "no_columns/1x128", .num_tokens = 5, .group = k1x128},
      {.name = "no_columns/128x128", .num_tokens = 5, .group = k128x128},
      {.name = "one_element/tensor", .num_tokens = 1, .hidden_size = 1},
      {.name = "one_element/128x128", .num_tokens = 1, .hidden_size = 1, .group = k128x128, .format = kFp32},
      {.name = "one_column/row", .num_tokens = 300, .hidden_size = 1, .group = kRow},
      {.name = "one_column/1x128_fp32", .num_tokens = 300, .hidden_size = 1, .group = k1x128, .format = kFp32},

      {.name = "last_group_of_1", .num_tokens = 9, .hidden_size = 129, .group = k1x128},
      {.name = "last_group_of_127", .num_tokens = 9, .hidden_size = 383, .group = k1x128, .format = kFp16},
      {.name = "last_group_of_4", .num_tokens = 9, .hidden_size = 132, .group = k1x128},
      {.name = "last_group_of_64", .num_tokens = 9, .hidden_size = 576, .group = k1x128, .format = kFp32},
      {.name = "last_block_of_1x1", .num_tokens = 129, .hidden_size = 129, .group = k128x128},
      {.name = "last_block_of_127x4", .num_tokens = 255, .hidden_size = 260, .group = k128x128, .format = kFp32},
      {.name = "less_than_a_block", .num_tokens = 40, .hidden_size = 96, .group = k128x128, .format = kFp16},
      {.name = "odd_columns/tensor", .num_tokens = 7, .hidden_size = 1237},
      {.name = "odd_columns/row_fp32", .num_tokens = 7, .hidden_size = 515, .group = kRow, .format = kFp32},

      {.name = "given/row", .num_tokens = 12, .hidden_size = 300, .group = kRow, .scales = kGiven},
      {.name = "given/1x128_fp32", .num_tokens = 12, .hidden_size = 300, .group = k1x128, .format = kFp32, .scales = kGiven},
      {.name = "given/128x128_fp16", .num_tokens = 200, .hidden_size = 300, .group = k128x128, .format = kFp16, .scales = kGiven},
      {.name = "any_scales/tensor", .num_tokens = 12, .hidden_size = 300, .scales = kAnyScales, .values = kSpecial},
      {.name = "any_scales/row", .num_tokens = 300, .hidden_size = 40, .group = kRow, .scales = kAnyScales, .values = kSpecial},
      {.name = "any_scales/1x128_fp32", .num_tokens = 64, .hidden_size = 1024, .group = k1x128, .format = kFp32, .scales = kAnyScales, .values = kAnyBits},
      {.name = "any_scales/1x128_subnormal", .num_tokens = 64, .hidden_size = 512, .group = k1x128, .format = kFp32, .scales = kAnyScales, .values = kSubnormal},

      {.name = "any_bits/tensor", .num_tokens = 20, .hidden_size = 512, .values = kAnyBits},
      {.name = "any_bits/row_fp16", .num_tokens = 20, .hidden_size = 512, .group = kRow, .format = kFp16, .values = kAnyBits},
      {.name = "any_bits/1x128_fp32", .num_tokens = 20, .hidden_size = 512, .group = k1x128, .format = kFp32, .values = kAnyBits},
      {.name = "special/tensor_fp32", .num_tokens = 20, .hidden_size = 512, .format = kFp32, .values = kSpecial},
      {.name = "special/1x128", .num_tokens = 20, .hidden_size = 512, .group = k1x128, .values = kSpecial},
      {.name = "special/128x128_fp16", .num_tokens = 150, .hidden_size = 200, .group = k128x128, .format = kFp16, .scales = kUe8m0, .values = kSpecial},
      {.name = "subnormal/1x128_fp32", .num_tokens = 20, .hidden_size = 512, .group = k1x128, .format = kFp32, .values = kSubnormal},
      {.name = "subnormal/row", .num_tokens = 20, .hidden_size = 512, .group = kRow, .scales = kUe8m0, .values = kSubnormal},
      {.name = "subnormal/tensor_fp16", .num_tokens = 20, .hidden_size = 512, .format = kFp16, .values = kSubnormal},
      {.name = "huge/1x128", .num_tokens = 20, .hidden_size = 512, .group = k1x128, .values = kHuge},
      {.name = "huge/row_fp32", .num_tokens = 20, .hidden_size = 512, .group = kRow, .format = kFp32, .scales = kUe8m0, .values = kHuge},
      {.name = "zeros/1x128", .num_tokens = 20, .hidden_size = 512, .group = k1x128, .zeros = 1},
      {.name = "zeros/tensor", .num_tokens = 20, .hidden_size = 512, .zeros = 1},
      {.name = "some_zeros/1x128_fp32", .num_tokens = 40, .hidden_size = 512, .group = k1x128, .format = kFp32, .scales = kUe8m0, .zeros = 2},
      {.name = "ties/row_fp32", .num_tokens = 40, .hidden_size = 512, .group = kRow, .format = kFp32, .has_ties = true},
      {.name = "ties/1x128", .num_tokens = 40, .hidden_size = 512, .group = k1x128, .has_ties = true},
      {.name = "ties/tensor_fp16_ue8m0", .num_tokens = 40, .hidden_size = 512, .format = kFp16, .scales = kUe8m0, .has_ties = true},

      {.name = "rows_apart/tensor", .num_tokens = 9, .hidden_size = 128, .x_gap = 64, .values_gap = 8},
      {.name = "rows_apart/row", .num_tokens = 9, .hidden_size = 260, .group = kRow, .x_gap = 4, .values_gap = 4},
      {.name = "rows_apart/1x128_unaligned", .num_tokens = 9, .hidden_size = 256, .group = k1x128, .x_gap = 3, .values_gap = 1},
      {.name = "rows_apart/128x128_fp32", .num_tokens = 140, .hidden_size = 144, .group = k128x128, .format = kFp32, .x_gap = 4, .values_gap = 7},
      {.name = "rows_apart/given_fp16", .num_tokens = 9, .hidden_size = 144, .group = k1x128, .format = kFp16, .scales = kGiven, .x_gap = 8, .values_gap = 16},
  };
}
// clang-format on

bool is_given(const Case& c) { return c.scales == kGiven || c.scales == kAnyScales; }

std::int64_t blocks_of(std::int64_t length) { return (length + 127) / 128; }

std::int64_t num_scale_rows(const Case& c) {
  if (c.group == kTensor) return 1;
  return c.group == k128x128 ? blocks_of(c.num_tokens) : c.num_tokens;
}

std::int64_t num_scale_columns(const Case& c) {
  return c.group == kTensor || c.group == kRow ? 1 : blocks_of(c.hidden_size);
}

/// A scale of one has the amax 448, which the first element of each row is. The others lie half way
/// between two values, or one unit of their own format away from that.
std::uint32_t tie(const Case& c, std::int64_t column, RandomNumbers& random) {
  if (column % 128 == 0) return bits_of(c.format, 448.0);
  const auto exponent = static_cast<int>(random.below(15)) - 6;
  const double tied = random.one_in(8)
                          ? std::ldexp(static_cast<double>(2 * random.below(8) + 1), -10)
                          : std::ldexp(static_cast<double>(17 + 2 * random.below(8)), exponent - 4);
  if (tied > 448) return bits_of(c.format, 448.0);
  const std::uint32_t bits = bits_of(c.format, tied);
  return (bits + static_cast<std::uint32_t>(random.below(3)) - 1) ^
         (random.one_in(2) ? c.format.sign_bit() : 0);
}

std::vector<std::uint32_t> draw_x(const Case& c, RandomNumbers& random) {
  if (c.num_tokens * c.hidden_size == 0) return {};
  const std::int64_t stride = c.hidden_size + c.x_gap;
  // The gaps between rows hold the largest number, which shows in a scale that reads it.
  std::vector<std::uint32_t> x(
      static_cast<std::size_t>((c.num_tokens - 1) * stride + c.hidden_size),
      c.format.infinity() - 1);
  for (std::int64_t token = 0; token < c.num_tokens; ++token) {
    bool is_zero = false;
    for (std::int64_t column = 0; column < c.hidden_size; ++column) {
      if (column % 32 == 0 && c.zeros > 0) {
        // Sometimes a whole group of 128 columns, which then gets the scale of zeros.
        is_zero = column % 128 == 0 ? random.one_in(c.zeros) : is_zero || random.one_in(c.zeros);
      }
      std::uint32_t bits =
          c.has_ties ? tie(c, column, random) : random_float(c.format, c.values, random);
      if (is_zero) bits &= c.format.sign_bit();
      x[static_cast<std::size_t>(token * stride + column)] = bits;
    }
  }
  return x;
}

std::vector<std::uint32_t> draw_scale(const Case& c, RandomNumbers& random) {
  std::vector<std::uint32_t> scale(
      static_cast<std::size_t>(num_scale_rows(c) * num_scale_columns(c)));
  for (std::uint32_t& bits : scale) {
    if (c.scales == kGiven) {
      bits = float_with_exponent(kFp32, 112, 124, random) & ~kFp32.sign_bit();
    } else {
      bits = random_float(kFp32, random.one_in(2) ? kSpecial : kAnyBits, random);
    }
  }
  return scale;
}

}  // namespace

std::span<const QuantizeFp8Case> quantize_fp8_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

QuantizeFp8Case random_quantize_fp8_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  const FloatFormat formats[] = {kFloat16Format, kBfloat16Format, kFloat32Format};
  c.format = formats[random.below(std::ssize(formats))];
  c.group = static_cast<Fp8Group>(random.below(std::ssize(kFp8GroupNames)));
  c.hidden_size = random.magnitude_below(max_elements + 1);
  if (random.one_in(2)) c.hidden_size = c.hidden_size / 16 * 16;
  const std::int64_t max_rows = max_elements / std::max<std::int64_t>(1, c.hidden_size);
  c.num_tokens = random.below(std::min<std::int64_t>(max_rows, kMaxRandomSize) + 1);
  c.scales = static_cast<Fp8Scales>(random.below(kNumFp8Scales));
  // Drawn twice as often as the rest: what engines quantise.
  c.values = random.one_in(3) ? kOrdinary : static_cast<FloatValues>(random.below(kNumFloatValues));
  if (random.one_in(4)) c.zeros = 1 + random.below(3);
  c.has_ties = random.one_in(6);
  if (random.one_in(3)) {
    const std::int64_t unit = random.one_in(2) ? 4 : 1;
    c.x_gap = unit * random.below(5);
    c.values_gap = unit * random.below(5);
  }
  return c;
}

CaseArguments make_arguments(const QuantizeFp8Case& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  CaseBuilder<QuantizeFp8Args> made("quantize_fp8");
  QuantizeFp8Args& args = made.args();
  args.group = c.group;
  args.use_ue8m0 = c.scales == kUe8m0;
  args.x = made.input(bytes_of(draw_x(c, random), c.format), dtype_of(c.format),
                      {c.num_tokens, c.hidden_size}, {c.hidden_size + c.x_gap, 1});
  const bool is_one = c.group == kTensor;
  const std::int64_t rows = num_scale_rows(c);
  const std::int64_t columns = num_scale_columns(c);
  if (is_given(c)) {
    std::vector<std::byte> scale = bytes_of(draw_scale(c, random), kFp32);
    args.scale = is_one ? made.input(std::move(scale), kFloat32, {1})
                        : made.input(std::move(scale), kFloat32, {rows, columns});
  }
  args.values =
      strided(output(kFp8, {c.num_tokens, c.hidden_size}), {c.hidden_size + c.values_gap, 1});
  args.scales = is_one ? output(kFloat32, {1}) : output(kFloat32, {rows, columns});
  return made.finish();
}

}  // namespace tessera::contract
