// The long tier: a full-size run just below the int32 limit of the capacity. Takes about 11 GiB of
// memory and two minutes, so it is started by hand:
//
//   build/dev/tests/unit/align_block_size_long_test
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "align_block_size_checker.hpp"
#include "random_numbers.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

/// What the system could still give out without swapping.
std::int64_t available_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  std::int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return 0;
}

TEST(AlignBlockSizeLong, CapacityIsTheLargestInt32) {
  if (available_bytes() < 13 * kGiB) {
    GTEST_SKIP() << "needs 13 GiB of available memory, found " << available_bytes() / kGiB;
  }
  constexpr std::int64_t kBlockSize = 128;
  constexpr std::int64_t kNumExperts = 100;
  constexpr std::int64_t kNumIds =
      std::numeric_limits<std::int32_t>::max() - kNumExperts * (kBlockSize - 1);

  Context context;
  AlignBlockSizeSizes sizes;
  const Status sized =
      align_block_size_sizes({kNumIds, kBlockSize, kNumExperts, false}, context, &sizes);
  ASSERT_TRUE(sized.ok()) << sized.message();
  ASSERT_EQ(sizes.sorted_token_ids, std::numeric_limits<std::int32_t>::max());

  // One id in 101 is out of range.
  contract::RandomNumbers random(1);
  std::vector<std::int8_t> topk_ids(kNumIds);
  for (std::int8_t& id : topk_ids) id = static_cast<std::int8_t>(random.below(kNumExperts + 1));
  std::vector<std::int32_t> sorted_token_ids(sizes.sorted_token_ids, -7);
  std::vector<std::int32_t> expert_ids(sizes.expert_ids, -7);
  std::vector<std::int32_t> num_tokens_post_pad(1, -7), expert_counts(kNumExperts, -7);
  std::vector<std::int32_t> num_dropped(1, -7);
  std::vector<std::byte> workspace(sizes.workspace_bytes);
  context.workspace = workspace;

  AlignBlockSizeArgs args;
  args.topk_ids = TensorView::of(std::span(topk_ids));
  args.block_size = kBlockSize;
  args.num_experts = kNumExperts;
  args.sorted_token_ids = TensorView::of(std::span(sorted_token_ids));
  args.expert_ids = TensorView::of(std::span(expert_ids));
  args.num_tokens_post_pad = TensorView::of(std::span(num_tokens_post_pad));
  args.expert_counts = TensorView::of(std::span(expert_counts));
  args.num_dropped = TensorView::of(std::span(num_dropped));
  const Status status = align_block_size(args, context);
  ASSERT_TRUE(status.ok()) << status.message();
  for (const contract::Violation& violation : contract::check_align_block_size(args)) {
    ADD_FAILURE() << violation.message;
  }
}

}  // namespace
}  // namespace tessera
