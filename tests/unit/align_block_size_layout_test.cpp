// How the CUDA kernels divide their shared memory and workspace, tested where there is no GPU.
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "cuda/align_block_size/layout.hpp"
#include "cuda/lora_align_block_size/kernel.hpp"

namespace tessera::cuda {
namespace {

struct Bytes {
  std::size_t begin;
  std::size_t end;
};

template <typename... T>
std::vector<Bytes> bytes_of(const Section<T>&... sections) {
  return {{sections.begin, sections.end}...};
}

/// Arrays follow each other without overlap, and each can be cleared 16 bytes at a time.
void expect_consecutive(const std::vector<Bytes>& sections, std::size_t total) {
  std::size_t end = 0;
  for (const Bytes& section : sections) {
    EXPECT_EQ(section.begin, end);
    EXPECT_EQ(section.begin % 16, 0U);
    end = section.end;
  }
  EXPECT_EQ(end, total);
}

constexpr std::size_t kGroupCounts[] = {1, 6, 7, 14, 15, 64, 257, 3000};

TEST(AlignBlockSizeLayout, ARowHasTwoCountersMoreThanGroupsInWholeWords) {
  EXPECT_EQ(counters_per_row(1), 8U);
  EXPECT_EQ(counters_per_row(6), 8U);
  EXPECT_EQ(counters_per_row(7), 16U);
  EXPECT_EQ(counters_per_row(256), 264U);
}

TEST(AlignBlockSizeLayout, SharedMemoryHoldsEveryArrayOnce) {
  for (const std::size_t groups : kGroupCounts) {
    const OneCtaLayout one_cta(groups, 8);
    expect_consecutive(bytes_of(one_cta.counts, one_cta.masks, one_cta.starts), one_cta.bytes());
    const RedundantLayout redundant(groups, 64);
    expect_consecutive(bytes_of(redundant.both_counts, redundant.starts, redundant.first_blocks,
                                redundant.masks, redundant.counts),
                       redundant.bytes());
    const ClusterLayout cluster(groups, 8);
    expect_consecutive(bytes_of(cluster.cta_counts, cluster.starts, cluster.first_blocks,
                                cluster.group_sizes, cluster.masks, cluster.counts),
                       cluster.bytes());
    const GridLayout grid(groups, 512, 3);
    expect_consecutive(bytes_of(grid.group_sizes, grid.starts, grid.sorted_starts,
                                grid.first_blocks, grid.masks, grid.sorted, grid.counts),
                       grid.bytes());
    const LoraLayout lora(groups, 5);
    expect_consecutive(bytes_of(lora.cta_counts, lora.first_blocks, lora.counts, lora.masks),
                       lora.bytes());
  }
}

TEST(AlignBlockSizeLayout, SharedMemoryOf256Groups) {
  constexpr std::size_t kRow = 264;
  EXPECT_EQ(OneCtaLayout(256, 8).bytes(), kRow * (8 * (2 + 4) + 4));
  EXPECT_EQ(RedundantLayout(256, 64).bytes(), kRow * (2 * (2 + 4) + 3 * 4));
  EXPECT_EQ(ClusterLayout(256, 8).bytes(), kRow * (8 * (2 + 4) + 4 * 4));
  EXPECT_EQ(GridLayout(256, 512, 4).bytes(), kRow * (16 * (2 + 4) + 4 * 4) + 512 * 4 * 4);
  EXPECT_EQ(LoraLayout(256, 32).bytes(), kRow * (32 * (4 + 4) + 2 * 4));
}

TEST(AlignBlockSizeLayout, PartialSumsOfTheGridReuseTheMasks) {
  const GridLayout grid(256, 512, 4);
  EXPECT_EQ(grid.partial_sums.begin, grid.masks.begin);
  EXPECT_EQ(grid.partial_sums.end, grid.masks.end);
}

TEST(AlignBlockSizeLayout, WorkspacesHoldEveryArrayOnce) {
  const GridWorkspace grid(257, 132);
  EXPECT_EQ(grid.row_length, 264U);
  expect_consecutive(bytes_of(grid.counts, grid.dropped), grid.bytes());
  EXPECT_EQ(grid.bytes(), 132U * (264 * 2 + 4));
  const WideWorkspace wide(256, 132);
  expect_consecutive(bytes_of(wide.counts, wide.group_sizes, wide.first_blocks, wide.cta_sums),
                     wide.bytes());
  EXPECT_EQ(wide.bytes(), 4U * (256 * (132 + 2) + 8 * 132));
}

}  // namespace
}  // namespace tessera::cuda
