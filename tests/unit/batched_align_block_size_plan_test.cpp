// How batched_align_block_size is launched on a GPU: pure functions, tested without one.
#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/batched_align_block_size/kernel.hpp"

namespace tessera::cuda {
namespace {

constexpr DeviceProperties kH200{90, 132, 227 * 1024};

TEST(BatchedPlan, SmallShapesTakeOneCtaAndLargeOnesTwoAMultiprocessor) {
  EXPECT_EQ(plan_batched(0, 0, kH200).num_ctas, 1);
  EXPECT_EQ(plan_batched(8, 2048, kH200).num_ctas, 1);
  EXPECT_EQ(plan_batched(8, 2049, kH200).num_ctas, 2);
  EXPECT_EQ(plan_batched(256, 1 << 18, kH200).num_ctas, 128);
  EXPECT_EQ(plan_batched(1, 2147483647, kH200).num_ctas, 264);
}

TEST(BatchedPlan, ThereIsSharedMemoryForTheMostBatchesAndNoneMore) {
  const std::int64_t most = batched_max_batches(kH200);
  EXPECT_GT(most, 50000);
  EXPECT_LE(BatchedLayout(most).bytes() + kBatchedStaticSharedBytes, kH200.max_shared_bytes);
  EXPECT_GT(BatchedLayout(most + 1).bytes() + kBatchedStaticSharedBytes, kH200.max_shared_bytes);
  EXPECT_EQ(plan_batched(most, most, kH200).shared_bytes, BatchedLayout(most).bytes());
}

TEST(Division, IsExactBelow2To31) {
  for (const std::int32_t size : {1, 2, 3, 7, 16, 100, 127, 128, 129, 1000, 65535, 65536, 65537,
                                  1073741823, 1073741824, 1073741825, 2147483647}) {
    const Division division = division_by(size);
    for (const std::int64_t around :
         {std::int64_t{0}, std::int64_t{size}, std::int64_t{5} * size,
          std::int64_t{2147483647} / size * size, std::int64_t{2147483647}}) {
      for (std::int64_t x = around - 1; x <= around + 1; ++x) {
        if (x < 0 || x > 2147483647) continue;
        const auto high_word = static_cast<std::uint64_t>(x) * division.multiplier >> 32;
        const std::uint64_t quotient =
            (division.multiplier != 0 ? high_word : static_cast<std::uint64_t>(x)) >>
            division.shift;
        EXPECT_EQ(quotient, static_cast<std::uint64_t>(x / size)) << x << " / " << size;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::cuda
