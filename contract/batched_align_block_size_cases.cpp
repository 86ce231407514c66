#include "batched_align_block_size_cases.hpp"

#include <algorithm>
#include <iterator>
#include <limits>

#include "arrays.hpp"
#include "random_case.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = BatchedAlignBlockSizeCase;
using enum BatchCounts;

constexpr int kNumBatchCounts = 5;
constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

// clang-format off
std::vector<Case> make_table() {
  return {
      // Local experts x room for tokens per expert / block size, as engines run them.
      {.name = "8x64/16", .num_batches = 8, .max_tokens_per_batch = 64, .block_size = 16},
      {.name = "32x128/16", .num_batches = 32, .max_tokens_per_batch = 128, .block_size = 16},
      {.name = "32x256/64", .num_batches = 32, .max_tokens_per_batch = 256, .block_size = 64},
      {.name = "256x1024/128", .num_batches = 256, .max_tokens_per_batch = 1024, .block_size = 128},
      {.name = "256x4096/128", .num_batches = 256, .max_tokens_per_batch = 4096, .block_size = 128},
      {.name = "512x4096/128", .num_batches = 512, .max_tokens_per_batch = 4096, .block_size = 128},

      {.name = "no_batches", .max_tokens_per_batch = 16, .block_size = 4},
      {.name = "no_batches_long_buffers", .max_tokens_per_batch = 16, .block_size = 4, .tail_expert = 7, .extra_length = 9},
      {.name = "no_room", .num_batches = 5, .block_size = 4},
      {.name = "no_room_broken_counts", .num_batches = 5, .block_size = 4, .counts = kBroken, .extra_length = 3},
      {.name = "no_tokens", .num_batches = 40, .max_tokens_per_batch = 16, .block_size = 4, .counts = kEmpty},
      {.name = "one_token", .num_batches = 1, .max_tokens_per_batch = 1, .counts = kFull},
      {.name = "one_batch", .num_batches = 1, .max_tokens_per_batch = 1000, .block_size = 64},
      {.name = "block_1", .num_batches = 30, .max_tokens_per_batch = 50},
      {.name = "block_7", .num_batches = 30, .max_tokens_per_batch = 50, .block_size = 7, .extra_length = 2},
      {.name = "block_is_maximum", .num_batches = 30, .max_tokens_per_batch = 48, .block_size = 48, .counts = kFull},
      {.name = "block_above_maximum", .num_batches = 30, .max_tokens_per_batch = 5, .block_size = 1000},
      {.name = "full_batches", .num_batches = 100, .max_tokens_per_batch = 96, .block_size = 32, .counts = kFull},
      {.name = "full_batches_padded", .num_batches = 100, .max_tokens_per_batch = 97, .block_size = 32, .counts = kFull},
      {.name = "one_full_batch_of_many", .num_batches = 700, .max_tokens_per_batch = 300, .block_size = 16, .counts = kOneBatch},
      {.name = "broken_counts", .num_batches = 300, .max_tokens_per_batch = 33, .block_size = 8, .counts = kBroken, .tail_expert = 0},
      {.name = "511_batches", .num_batches = 511, .max_tokens_per_batch = 20, .block_size = 8},
      {.name = "512_batches", .num_batches = 512, .max_tokens_per_batch = 20, .block_size = 8},
      {.name = "513_batches", .num_batches = 513, .max_tokens_per_batch = 20, .block_size = 8},
      {.name = "20000_batches", .num_batches = 20000, .max_tokens_per_batch = 3, .block_size = 4, .counts = kBroken},
      {.name = "20000_batches_block_1", .num_batches = 20000, .max_tokens_per_batch = 5, .counts = kOneBatch},
      {.name = "tail_smallest", .num_batches = 9, .max_tokens_per_batch = 10, .block_size = 4, .tail_expert = std::numeric_limits<std::int32_t>::min(), .extra_length = 100},
  };
}
// clang-format on

std::int32_t broken_count(const Case& c, RandomNumbers& random) {
  const auto above = static_cast<std::int32_t>(c.max_tokens_per_batch) + 1;
  const std::int32_t values[] = {-1, std::numeric_limits<std::int32_t>::min(), above,
                                 std::numeric_limits<std::int32_t>::max()};
  return values[random.below(std::ssize(values))];
}

}  // namespace

std::span<const BatchedAlignBlockSizeCase> batched_align_block_size_cases() {
  static const std::vector<Case> table = make_table();
  return table;
}

BatchedAlignBlockSizeCase random_batched_align_block_size_case(std::uint64_t seed,
                                                               std::int64_t max_slots) {
  RandomNumbers random(seed);
  Case c;
  c.name = random_case_name(seed, max_slots);
  c.block_size = random.one_in(2) ? std::int64_t{1} << random.below(9) : 1 + random.below(300);
  c.num_batches = random.magnitude_below(max_slots / c.block_size + 1);
  const std::int64_t max_blocks =
      max_slots / c.block_size / std::max<std::int64_t>(1, c.num_batches);
  c.max_tokens_per_batch = random.magnitude_below(max_blocks * c.block_size + 1);
  // Drawn twice as often as the rest: most callers have neither broken nor extreme counts.
  c.counts = random.one_in(2) ? kUniform : static_cast<BatchCounts>(random.below(kNumBatchCounts));
  c.tail_expert = random.one_in(2) ? -1 : static_cast<std::int32_t>(random.below(1 << 20)) - 1000;
  c.extra_length = random.one_in(2) ? 0 : random.below(300);
  // The rest is drawn from the whole range: blocks that a few batches fill, and arguments without
  // a slot. It comes last, so that other cases do not change.
  if (random.one_in(4)) {
    c.block_size = 1 + random.magnitude_below(max_slots + 1);
    c.num_batches = random.below(max_slots / c.block_size + 1);
    c.max_tokens_per_batch = random.magnitude_below(c.block_size + 1);
  }
  if (c.num_batches == 0 && random.one_in(2)) {
    c.max_tokens_per_batch = random.magnitude_below(kInt32Max + 1);
  }
  if ((c.num_batches == 0 || c.max_tokens_per_batch == 0) && random.one_in(2)) {
    c.block_size = 1 + random.magnitude_below(kInt32Max);
  }
  if (random.one_in(4)) c.tail_expert = any_int32(random);
  if (random.one_in(8)) c.extra_length = random.magnitude_below(std::int64_t{1} << 16);
  return c;
}

std::vector<std::int32_t> make_counts(const BatchedAlignBlockSizeCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  const auto full = static_cast<std::int32_t>(c.max_tokens_per_batch);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(c.num_batches),
                                   c.counts == kFull ? full : 0);
  if (c.counts == kOneBatch && !counts.empty()) {
    counts[static_cast<std::size_t>(random.below(c.num_batches))] = full;
  }
  if (c.counts == kUniform || c.counts == kBroken) {
    for (std::int32_t& count : counts) {
      count = c.counts == kBroken && random.one_in(4)
                  ? broken_count(c, random)
                  : static_cast<std::int32_t>(random.below(c.max_tokens_per_batch + 1));
    }
  }
  return counts;
}

BatchedAlignBlockSizeSizes smallest_sizes(const BatchedAlignBlockSizeCase& c) {
  const std::int64_t blocks_per_batch = (c.max_tokens_per_batch + c.block_size - 1) / c.block_size;
  const std::int64_t num_blocks = c.num_batches * blocks_per_batch;
  return {num_blocks * c.block_size, num_blocks};
}

CaseArguments make_arguments(const BatchedAlignBlockSizeCase& c, std::uint64_t seed) {
  const BatchedAlignBlockSizeSizes sizes = smallest_sizes(c);
  CaseBuilder<BatchedAlignBlockSizeArgs> made("batched_align_block_size");
  BatchedAlignBlockSizeArgs& args = made.args();
  args.expert_num_tokens = made.input(make_counts(c, seed));
  args.max_tokens_per_batch = c.max_tokens_per_batch;
  args.block_size = c.block_size;
  args.tail_expert = c.tail_expert;
  args.sorted_token_ids = output(kInt32, {sizes.sorted_token_ids + c.extra_length});
  args.expert_ids = output(kInt32, {sizes.expert_ids + c.extra_length});
  args.num_tokens_post_pad = output(kInt32, {1});
  return made.finish();
}

}  // namespace tessera::contract
