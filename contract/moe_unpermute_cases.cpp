#include "moe_unpermute_cases.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_floats.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = MoeUnpermuteCase;
using enum FloatValues;
using enum InverseKind;

constexpr FloatFormat kFp16 = kFloat16Format;
constexpr FloatFormat kFp32 = kFloat32Format;

// clang-format off
std::vector<Case> make_table() {
  return {
      // Tokens x slots x hidden size, as models have them; bfloat16 by default.
      {.name = "1x8x7168", .num_rows = 8, .num_tokens = 1, .top_k = 8, .hidden_size = 7168, .weighted = true},
      {.name = "16x8x2048", .num_rows = 128, .num_tokens = 16, .top_k = 8, .hidden_size = 2048, .weighted = true},
      {.name = "7x4x2880", .num_rows = 28, .num_tokens = 7, .top_k = 4, .hidden_size = 2880},
      {.name = "5x6x5120_fp16", .num_rows = 30, .num_tokens = 5, .top_k = 6, .hidden_size = 5120, .format = kFp16, .weighted = true},
      {.name = "4x10x2048_fp32", .num_rows = 40, .num_tokens = 4, .top_k = 10, .hidden_size = 2048, .format = kFp32, .weighted = true},
      {.name = "130x8x4096", .num_rows = 1040, .num_tokens = 130, .top_k = 8, .hidden_size = 4096, .weighted = true},
      // Rows of padded blocks: more rows than pairs.
      {.name = "padded_rows", .num_rows = 400, .num_tokens = 16, .top_k = 8, .hidden_size = 512, .weighted = true},

      {.name = "no_tokens", .num_rows = 5, .top_k = 8, .hidden_size = 64, .weighted = true},
      {.name = "no_columns", .num_rows = 15, .num_tokens = 5, .top_k = 3, .weighted = true},
      {.name = "no_rows", .num_tokens = 6, .top_k = 3, .hidden_size = 40, .weighted = true},
      {.name = "no_rows_any_int32", .num_tokens = 6, .top_k = 9, .hidden_size = 40, .format = kFp32, .inverse = kAnyInt32},
      {.name = "nothing", .top_k = 2},
      {.name = "one_element", .num_rows = 1, .num_tokens = 1, .hidden_size = 1},
      {.name = "one_row", .num_rows = 1, .num_tokens = 9, .top_k = 4, .hidden_size = 72, .weighted = true, .inverse = kRepeated, .remote = 2},
      {.name = "one_column", .num_rows = 200, .num_tokens = 40, .top_k = 5, .hidden_size = 1, .weighted = true},
      {.name = "one_slot", .num_rows = 12, .num_tokens = 12, .hidden_size = 300, .values = kAnyBits},
      {.name = "one_slot_fp16", .num_rows = 12, .num_tokens = 12, .hidden_size = 304, .format = kFp16, .values = kAnyBits},
      {.name = "one_slot_fp32", .num_rows = 12, .num_tokens = 12, .hidden_size = 304, .format = kFp32, .remote = 3, .values = kAnyBits},
      {.name = "odd_columns", .num_rows = 18, .num_tokens = 6, .top_k = 3, .hidden_size = 1237, .weighted = true},
      {.name = "odd_columns_fp16", .num_rows = 42, .num_tokens = 6, .top_k = 7, .hidden_size = 1031, .format = kFp16},
      {.name = "odd_columns_fp32", .num_rows = 54, .num_tokens = 6, .top_k = 9, .hidden_size = 515, .format = kFp32, .weighted = true},
      {.name = "7_columns", .num_rows = 200, .num_tokens = 50, .top_k = 4, .hidden_size = 7, .remote = 4},
      {.name = "8_columns", .num_rows = 200, .num_tokens = 50, .top_k = 4, .hidden_size = 8},
      {.name = "33_columns", .num_rows = 200, .num_tokens = 50, .top_k = 4, .hidden_size = 33, .weighted = true},
      // Words of 16 bytes that fill a warp but for one, and one more.
      {.name = "248_columns", .num_rows = 40, .num_tokens = 10, .top_k = 4, .hidden_size = 248, .weighted = true},
      {.name = "264_columns", .num_rows = 40, .num_tokens = 10, .top_k = 4, .hidden_size = 264, .weighted = true},
      {.name = "15_slots", .num_rows = 135, .num_tokens = 9, .top_k = 15, .hidden_size = 256, .weighted = true},
      {.name = "17_slots", .num_rows = 153, .num_tokens = 9, .top_k = 17, .hidden_size = 256, .format = kFp16, .weighted = true, .remote = 1},
      {.name = "32_slots", .num_rows = 160, .num_tokens = 5, .top_k = 32, .hidden_size = 128, .weighted = true},
      {.name = "33_slots_fp32", .num_rows = 165, .num_tokens = 5, .top_k = 33, .hidden_size = 128, .format = kFp32, .values = kCancelling},
      {.name = "1000_slots", .num_rows = 70, .num_tokens = 2, .top_k = 1000, .hidden_size = 40, .weighted = true, .inverse = kRepeated, .remote = 3},

      {.name = "half_remote", .num_rows = 160, .num_tokens = 40, .top_k = 8, .hidden_size = 256, .weighted = true, .remote = 4},
      {.name = "most_remote", .num_rows = 60, .num_tokens = 40, .top_k = 8, .hidden_size = 256, .remote = 7},
      {.name = "all_remote", .num_rows = 60, .num_tokens = 40, .top_k = 8, .hidden_size = 256, .weighted = true, .remote = 8},
      {.name = "remote_zeros", .num_rows = 90, .num_tokens = 90, .top_k = 2, .hidden_size = 64, .weighted = true, .remote = 5, .values = kSpecial},
      {.name = "repeated_rows", .num_rows = 10, .num_tokens = 40, .top_k = 8, .hidden_size = 256, .weighted = true, .inverse = kRepeated},
      {.name = "any_int32", .num_rows = 20, .num_tokens = 40, .top_k = 8, .hidden_size = 256, .weighted = true, .inverse = kAnyInt32},
      {.name = "any_int32_fp16", .num_rows = 20, .num_tokens = 60, .top_k = 5, .hidden_size = 100, .format = kFp16, .inverse = kAnyInt32},

      {.name = "rows_apart", .num_rows = 36, .num_tokens = 9, .top_k = 4, .hidden_size = 128, .weighted = true, .row_gap = 8, .output_gap = 16},
      {.name = "rows_apart_fp32", .num_rows = 36, .num_tokens = 9, .top_k = 4, .hidden_size = 128, .format = kFp32, .remote = 2, .row_gap = 4, .output_gap = 4},
      {.name = "rows_apart_unaligned", .num_rows = 45, .num_tokens = 9, .top_k = 5, .hidden_size = 128, .row_gap = 3, .output_gap = 7},
      {.name = "output_rows_unaligned", .num_rows = 45, .num_tokens = 9, .top_k = 5, .hidden_size = 128, .format = kFp16, .output_gap = 1},

      {.name = "any_bits", .num_rows = 160, .num_tokens = 20, .top_k = 8, .hidden_size = 512, .weighted = true, .values = kAnyBits},
      {.name = "any_bits_fp16", .num_rows = 160, .num_tokens = 20, .top_k = 8, .hidden_size = 512, .format = kFp16, .values = kAnyBits},
      {.name = "any_bits_fp32", .num_rows = 60, .num_tokens = 20, .top_k = 3, .hidden_size = 512, .format = kFp32, .weighted = true, .values = kAnyBits},
      {.name = "special", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .weighted = true, .remote = 2, .values = kSpecial},
      {.name = "special_fp16", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp16, .values = kSpecial},
      {.name = "special_fp32", .num_rows = 40, .num_tokens = 20, .top_k = 2, .hidden_size = 512, .format = kFp32, .remote = 4, .values = kSpecial},
      {.name = "subnormal", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .weighted = true, .values = kSubnormal},
      {.name = "subnormal_fp32", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp32, .values = kSubnormal},
      {.name = "huge", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .values = kHuge},
      {.name = "huge_fp16", .num_rows = 80, .num_tokens = 20, .top_k = 4, .hidden_size = 512, .format = kFp16, .weighted = true, .values = kHuge},
      {.name = "cancelling", .num_rows = 160, .num_tokens = 20, .top_k = 8, .hidden_size = 512, .remote = 1, .values = kCancelling},
      {.name = "cancelling_fp32", .num_rows = 160, .num_tokens = 20, .top_k = 8, .hidden_size = 512, .format = kFp32, .weighted = true, .values = kCancelling},
  };
}
// clang-format on

/// A weight: an ordinary one if the rows alone make the case.
std::uint32_t any_weight(FloatValues values, RandomNumbers& random) {
  const bool is_ordinary = values != kAnyBits && values != kSpecial;
  if (!is_ordinary) return random_float(kFp32, values, random);
  return float_with_exponent(kFp32, kFp32.max_exponent - 8, kFp32.max_exponent, random);
}

/// A number that is no row: every other time -1.
std::int32_t no_row(std::int64_t num_rows, RandomNumbers& random) {
  using Limits = std::numeric_limits<std::int32_t>;
  if (random.one_in(2)) return -1;
  const std::int32_t others[] = {static_cast<std::int32_t>(num_rows), Limits::max(), Limits::min()};
  return others[random.below(std::ssize(others))];
}

/// The rows in a random order.
std::vector<std::int32_t> shuffled_rows(std::int64_t num_rows, RandomNumbers& random) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  for (std::size_t i = rows.size(); i > 1; --i) {
    std::swap(rows[i - 1],
              rows[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)))]);
  }
  return rows;
}

std::vector<std::int32_t> make_inverse(const Case& c, RandomNumbers& random) {
  std::vector<std::int32_t> unused;
  if (c.inverse == kPermutation) unused = shuffled_rows(c.num_rows, random);
  std::vector<std::int32_t> inverse(static_cast<std::size_t>(c.num_tokens * c.top_k));
  for (std::int32_t& row : inverse) {
    if (c.inverse == kAnyInt32 && !random.one_in(4)) {
      row = any_int32(random);
    } else if (c.num_rows == 0 || random.below(8) < c.remote ||
               (c.inverse == kPermutation && unused.empty())) {
      row = no_row(c.num_rows, random);
    } else if (c.inverse != kPermutation) {
      row = static_cast<std::int32_t>(random.below(c.num_rows));
    } else {
      row = unused.back();
      unused.pop_back();
    }
  }
  return inverse;
}

bool is_row(const Case& c, std::int32_t row) { return row >= 0 && row < c.num_rows; }

/// Rows with values where a pair has them. All else holds NaNs, which show in any sum that reads
/// them.
std::vector<std::uint32_t> make_rows(const Case& c, const std::vector<std::int32_t>& inverse,
                                     RandomNumbers& random) {
  const std::int64_t stride = c.hidden_size + c.row_gap;
  const bool is_empty = c.num_rows == 0 || c.hidden_size == 0;
  std::vector<std::uint32_t> rows(
      static_cast<std::size_t>(is_empty ? 0 : (c.num_rows - 1) * stride + c.hidden_size),
      c.format.nan());
  std::vector<bool> is_filled(static_cast<std::size_t>(c.num_rows));
  std::int32_t before = -1;  // the row of the pair before
  for (const std::int32_t row : inverse) {
    if (!is_row(c, row) || is_filled[static_cast<std::size_t>(row)]) continue;
    is_filled[static_cast<std::size_t>(row)] = true;
    const bool cancels = c.values == kCancelling && before >= 0;
    for (std::int64_t column = 0; column < c.hidden_size; ++column) {
      std::uint32_t& bits = rows[static_cast<std::size_t>(row * stride + column)];
      if (cancels) {
        bits = rows[static_cast<std::size_t>(before * stride + column)] ^ c.format.sign_bit() ^
               random_bits(random, 1);
      } else {
        bits = random_float(c.format, c.values, random);
      }
    }
    before = cancels ? -1 : row;
  }
  return rows;
}

}  // namespace

std::span<const MoeUnpermuteCase> moe_unpermute_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

MoeUnpermuteCase random_moe_unpermute_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  const FloatFormat formats[] = {kFloat16Format, kBfloat16Format, kFloat32Format};
  c.format = formats[random.below(std::ssize(formats))];
  c.hidden_size = random.magnitude_below(max_elements + 1);
  if (random.one_in(2)) c.hidden_size = c.hidden_size / 8 * 8;
  const std::int64_t max_rows = max_elements / std::max<std::int64_t>(1, c.hidden_size);
  const std::int64_t max_slots = random.one_in(4) ? 70 : 20;
  c.top_k = std::max<std::int64_t>(1, random.below(std::min(max_rows, max_slots) + 1));
  c.num_tokens = random.below(max_rows / c.top_k + 1);
  c.num_rows = random.one_in(3) ? random.magnitude_below(max_rows + 1) : c.num_tokens * c.top_k;
  c.weighted = random.one_in(2);
  c.inverse = static_cast<InverseKind>(random.below(kNumInverseKinds));
  if (random.one_in(2)) c.remote = static_cast<int>(random.below(9));
  // Drawn twice as often as the rest: what engines sum.
  c.values = random.one_in(3) ? kOrdinary : static_cast<FloatValues>(random.below(kNumFloatValues));
  if (random.one_in(3)) {
    const std::int64_t unit = random.one_in(2) ? 8 : 1;
    c.row_gap = unit * random.below(5);
    c.output_gap = unit * random.below(5);
  }
  return c;
}

CaseArguments make_arguments(const MoeUnpermuteCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  const DLDataType dtype = dtype_of(c.format);
  const std::vector<std::int32_t> inverse = make_inverse(c, random);
  CaseBuilder<MoeUnpermuteArgs> made("moe_unpermute");
  MoeUnpermuteArgs& args = made.args();
  args.rows = made.input(bytes_of(make_rows(c, inverse, random), c.format), dtype,
                         {c.num_rows, c.hidden_size}, {c.hidden_size + c.row_gap, 1});
  if (c.weighted) {
    // NaNs where pairs do not count, as in the rows.
    std::vector<std::uint32_t> weights(inverse.size(), kFp32.nan());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (is_row(c, inverse[i])) weights[i] = any_weight(c.values, random);
    }
    args.topk_weights = made.input(bytes_of(weights, kFp32), kFloat32, {c.num_tokens, c.top_k});
  }
  std::vector<std::byte> numbers(inverse.size() * sizeof(std::int32_t));
  if (!numbers.empty()) std::memcpy(numbers.data(), inverse.data(), numbers.size());
  args.inverse = made.input(std::move(numbers), kInt32, {c.num_tokens, c.top_k});
  args.output =
      strided(output(dtype, {c.num_tokens, c.hidden_size}), {c.hidden_size + c.output_gap, 1});
  return made.finish();
}

}  // namespace tessera::contract
