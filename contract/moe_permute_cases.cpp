#include "moe_permute_cases.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = MoePermuteCase;
using enum PairIds;

constexpr DLDataType kFp16{kDLFloat, 16, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32 = kFloat32;
constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};

// clang-format off
std::vector<Case> make_table() {
  return {
      // Tokens x slots x hidden size / experts, as models have them; bfloat16 by default.
      {.name = "1x8x7168/256", .num_tokens = 1, .top_k = 8, .hidden_size = 7168, .num_experts = 256},
      {.name = "16x8x2048/128", .num_tokens = 16, .top_k = 8, .hidden_size = 2048, .num_experts = 128, .int64_ids = true},
      {.name = "64x4x2880/32", .num_tokens = 64, .top_k = 4, .hidden_size = 2880, .num_experts = 32},
      {.name = "33x8x7168_fp8/64", .num_tokens = 33, .top_k = 8, .hidden_size = 7168, .num_experts = 64, .dtype = kFp8},
      {.name = "40x2x4096_fp16/8", .num_tokens = 40, .top_k = 2, .hidden_size = 4096, .num_experts = 8, .dtype = kFp16},
      {.name = "20x6x2048_fp32/64", .num_tokens = 20, .top_k = 6, .hidden_size = 2048, .num_experts = 64, .dtype = kFp32},
      {.name = "300x8x512/60", .num_tokens = 300, .top_k = 8, .hidden_size = 512, .num_experts = 60},

      {.name = "no_tokens", .top_k = 8, .hidden_size = 64, .num_experts = 8, .block_size = 16},
      {.name = "no_columns", .num_tokens = 5, .top_k = 3, .num_experts = 4, .block_size = 4},
      {.name = "one_element", .num_tokens = 1, .hidden_size = 1},
      {.name = "one_column_fp8", .num_tokens = 40, .top_k = 5, .hidden_size = 1, .num_experts = 7, .dtype = kFp8},
      {.name = "one_expert", .num_tokens = 30, .top_k = 3, .hidden_size = 40, .block_size = 7},
      {.name = "odd_columns", .num_tokens = 9, .top_k = 3, .hidden_size = 1237, .num_experts = 5},
      {.name = "odd_columns_fp32", .num_tokens = 9, .top_k = 3, .hidden_size = 515, .num_experts = 5, .dtype = kFp32},
      {.name = "odd_columns_fp8", .num_tokens = 9, .top_k = 3, .hidden_size = 1031, .num_experts = 5, .block_size = 4, .dtype = kFp8},
      {.name = "257_words", .num_tokens = 5, .top_k = 2, .hidden_size = 2056, .num_experts = 6},
      {.name = "1000_slots", .num_tokens = 3, .top_k = 1000, .hidden_size = 24, .num_experts = 9},
      {.name = "17_slots", .num_tokens = 12, .top_k = 17, .hidden_size = 256, .num_experts = 40},
      {.name = "more_experts_than_pairs", .num_tokens = 4, .top_k = 2, .hidden_size = 32, .num_experts = 5000, .block_size = 8},

      {.name = "blocks_of_16", .num_tokens = 50, .top_k = 4, .hidden_size = 128, .num_experts = 16, .block_size = 16},
      {.name = "blocks_of_64_fp8", .num_tokens = 50, .top_k = 4, .hidden_size = 128, .num_experts = 16, .block_size = 64, .dtype = kFp8},
      {.name = "blocks_of_128", .num_tokens = 100, .top_k = 8, .hidden_size = 64, .num_experts = 32, .block_size = 128, .int64_ids = true},
      {.name = "blocks_of_7", .num_tokens = 20, .top_k = 3, .hidden_size = 72, .num_experts = 11, .block_size = 7},
      {.name = "one_block_each", .num_tokens = 3, .top_k = 2, .hidden_size = 16, .num_experts = 6, .block_size = 1000},

      {.name = "hot", .num_tokens = 200, .top_k = 4, .hidden_size = 96, .num_experts = 16, .block_size = 16, .ids = kHot},
      {.name = "few", .num_tokens = 60, .top_k = 4, .hidden_size = 96, .num_experts = 64, .block_size = 4, .ids = kFew, .int64_ids = true},
      {.name = "none", .num_tokens = 30, .top_k = 4, .hidden_size = 96, .num_experts = 8, .block_size = 16, .ids = kNone},
      {.name = "mixed", .num_tokens = 80, .top_k = 4, .hidden_size = 96, .num_experts = 8, .ids = kMixed},
      {.name = "mixed_int64", .num_tokens = 80, .top_k = 4, .hidden_size = 96, .num_experts = 8, .block_size = 32, .ids = kMixed, .int64_ids = true},
      {.name = "duplicates", .num_tokens = 40, .top_k = 6, .hidden_size = 96, .num_experts = 8, .ids = kDuplicates},

      // As many pairs or experts as take other kernels to sort.
      {.name = "2000_pairs", .num_tokens = 250, .top_k = 8, .hidden_size = 8, .num_experts = 60, .block_size = 4, .ids = kMixed},
      {.name = "12000_pairs", .num_tokens = 1500, .top_k = 8, .hidden_size = 8, .num_experts = 60, .block_size = 16, .ids = kMixed},
      {.name = "40000_pairs", .num_tokens = 5000, .top_k = 8, .hidden_size = 8, .num_experts = 60, .ids = kMixed, .int64_ids = true},
      {.name = "70000_experts", .num_tokens = 100, .top_k = 4, .hidden_size = 8, .num_experts = 70000, .block_size = 2, .ids = kMixed},

      {.name = "map", .num_tokens = 60, .top_k = 4, .hidden_size = 128, .num_experts = 8, .num_global_experts = 32},
      {.name = "map_int64", .num_tokens = 60, .top_k = 4, .hidden_size = 128, .num_experts = 8, .block_size = 16, .ids = kMixed, .int64_ids = true, .num_global_experts = 32},
      {.name = "short_map", .num_tokens = 60, .top_k = 2, .hidden_size = 128, .num_experts = 50, .block_size = 4, .ids = kMixed, .num_global_experts = 5},

      {.name = "rows_apart", .num_tokens = 30, .top_k = 4, .hidden_size = 128, .num_experts = 8, .block_size = 4, .x_gap = 64, .rows_gap = 8},
      {.name = "rows_apart_fp32", .num_tokens = 20, .top_k = 3, .hidden_size = 36, .num_experts = 8, .block_size = 1, .dtype = kFp32, .x_gap = 4, .rows_gap = 12},
      {.name = "rows_apart_unaligned", .num_tokens = 30, .top_k = 4, .hidden_size = 128, .num_experts = 8, .block_size = 4, .x_gap = 3, .rows_gap = 1},
      {.name = "rows_apart_fp8", .num_tokens = 30, .top_k = 4, .hidden_size = 128, .num_experts = 8, .block_size = 8, .dtype = kFp8, .x_gap = 16, .rows_gap = 9},
  };
}
// clang-format on

std::int64_t num_ids(const Case& c) {
  return c.num_global_experts > 0 ? c.num_global_experts : c.num_experts;
}

/// An id that does not count.
std::int64_t bad_id(const Case& c, RandomNumbers& random) {
  const std::int64_t count = num_ids(c);
  const std::int64_t valid = random.below(count);
  const std::int64_t far[] = {(std::int64_t{1} << 32) + valid, valid - (std::int64_t{1} << 32),
                              std::numeric_limits<std::int64_t>::min(),
                              std::numeric_limits<std::int64_t>::max()};
  if (c.int64_ids && random.one_in(2)) return far[random.below(std::ssize(far))];
  const std::int64_t near[] = {-1, -1, -2, count, std::numeric_limits<std::int32_t>::max()};
  return near[random.below(std::ssize(near))];
}

std::vector<std::int64_t> draw_ids(const Case& c, RandomNumbers& random) {
  std::vector<std::int64_t> ids;
  const std::int64_t count = num_ids(c);
  const std::int64_t few[] = {random.below(count), random.below(count), random.below(count)};
  for (std::int64_t i = 0; i < c.num_tokens * c.top_k; ++i) {
    const std::int64_t slot = i % c.top_k;
    std::int64_t id = random.below(count);
    if (c.ids == kNone) id = -1;
    if (c.ids == kHot && !random.one_in(4)) id = few[0];
    if (c.ids == kFew) id = few[random.below(std::ssize(few))];
    if (c.ids == kDuplicates && slot > 0) id = ids.back();
    if (c.ids == kMixed && random.one_in(2)) id = bad_id(c, random);
    while (c.ids == kUniform && slot < count &&
           std::find(ids.end() - slot, ids.end(), id) != ids.end()) {
      id = (id + 1) % count;
    }
    ids.push_back(id);
  }
  return ids;
}

/// Most entries are experts, some of them the same; the others are negative or too large.
std::vector<std::int32_t> draw_map(const Case& c, RandomNumbers& random) {
  std::vector<std::int32_t> map(static_cast<std::size_t>(c.num_global_experts));
  for (std::int32_t& expert : map) {
    expert = static_cast<std::int32_t>(random.below(c.num_experts));
    if (random.one_in(3)) expert = -1;
    if (random.one_in(8)) expert = static_cast<std::int32_t>(c.num_experts);
    if (random.one_in(16)) expert = any_int32(random);
  }
  return map;
}

std::vector<std::byte> draw_rows(const Case& c, RandomNumbers& random) {
  const std::int64_t width = c.dtype.bits / 8;
  const std::int64_t stride = (c.hidden_size + c.x_gap) * width;
  if (c.num_tokens * c.hidden_size == 0) return {};
  std::vector<std::byte> bytes(
      static_cast<std::size_t>((c.num_tokens - 1) * stride + c.hidden_size * width),
      std::byte{0xff});
  for (std::int64_t token = 0; token < c.num_tokens; ++token) {
    for (std::int64_t i = 0; i < c.hidden_size * width; ++i) {
      bytes[static_cast<std::size_t>(token * stride + i)] =
          static_cast<std::byte>(random.below(256));
    }
  }
  return bytes;
}

std::int64_t capacity(const Case& c) {
  const std::int64_t num_pairs = c.num_tokens * c.top_k;
  return num_pairs + std::min(num_pairs, c.num_experts) * (c.block_size - 1);
}

}  // namespace

std::span<const MoePermuteCase> moe_permute_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

MoePermuteCase random_moe_permute_case(std::uint64_t seed, std::int64_t max_elements) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_elements);
  const DLDataType types[] = {kFp16, kBf16, kFp32, kFp8};
  c.dtype = types[random.below(std::ssize(types))];
  c.hidden_size = random.magnitude_below(max_elements + 1);
  if (random.one_in(2)) c.hidden_size = c.hidden_size / 16 * 16;
  const std::int64_t max_rows = max_elements / std::max<std::int64_t>(1, c.hidden_size);
  c.top_k = std::max<std::int64_t>(1, random.below(std::min<std::int64_t>(max_rows, 20) + 1));
  c.num_tokens = random.below(std::min<std::int64_t>(max_rows / c.top_k, kMaxRandomSize) + 1);
  c.num_experts =
      1 + random.magnitude_below(std::min<std::int64_t>(max_elements, kMaxRandomSize - 1));
  const std::int64_t num_pairs = c.num_tokens * c.top_k;
  const std::int64_t max_groups = std::max<std::int64_t>(1, std::min(num_pairs, c.num_experts));
  const std::int64_t max_padding = std::max<std::int64_t>(0, max_rows - num_pairs) / max_groups;
  if (random.one_in(2)) {
    c.block_size += random.magnitude_below(std::min<std::int64_t>(max_padding, 4096) + 1);
  }
  // Drawn twice as often as the rest: what routers choose.
  c.ids = random.one_in(3) ? kUniform : static_cast<PairIds>(random.below(kNumPairIds));
  c.int64_ids = random.one_in(2);
  if (random.one_in(3)) {
    c.num_global_experts =
        1 + random.magnitude_below(std::min<std::int64_t>(max_elements, kMaxRandomSize - 1));
  }
  if (random.one_in(3)) {
    const std::int64_t unit = random.one_in(2) ? 16 : 1;
    c.x_gap = unit * random.below(5);
    c.rows_gap = unit * random.below(5);
  }
  return c;
}

CaseArguments make_arguments(const MoePermuteCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  CaseBuilder<MoePermuteArgs> made("moe_permute");
  MoePermuteArgs& args = made.args();
  args.num_experts = c.num_experts;
  args.block_size = c.block_size;
  args.x = made.input(draw_rows(c, random), c.dtype, {c.num_tokens, c.hidden_size},
                      {c.hidden_size + c.x_gap, 1});
  const std::vector<std::int64_t> ids = draw_ids(c, random);
  std::vector<std::byte> bytes(ids.size() * (c.int64_ids ? 8 : 4));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto narrow = static_cast<std::int32_t>(ids[i]);
    if (c.int64_ids) {
      std::memcpy(bytes.data() + 8 * i, &ids[i], 8);
    } else {
      std::memcpy(bytes.data() + 4 * i, &narrow, 4);
    }
  }
  args.topk_ids =
      made.input(std::move(bytes), c.int64_ids ? kInt64 : kInt32, {c.num_tokens, c.top_k});
  if (c.num_global_experts > 0) args.expert_map = made.input(draw_map(c, random));
  args.rows =
      strided(output(c.dtype, {capacity(c), c.hidden_size}), {c.hidden_size + c.rows_gap, 1});
  args.expert_offsets = output(kInt32, {c.num_experts + 1});
  args.inverse = output(kInt32, {c.num_tokens, c.top_k});
  return made.finish();
}

}  // namespace tessera::contract
