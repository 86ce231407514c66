// How the CUDA kernel of lora_align_block_size is launched, tested without a GPU.
#include <gtest/gtest.h>

#include "cuda/lora_align_block_size/kernel.hpp"
#include "cuda/lora_align_block_size/policy.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kKilobyte = 1024;
constexpr DeviceProperties kH200{90, 132, 227 * kKilobyte};
constexpr DeviceProperties kA100{80, 108, 163 * kKilobyte};
constexpr DeviceProperties kSmallestSlice{90, 16, 227 * kKilobyte};  // an eighth of an H200

TEST(LoraAlignBlockSizePolicy, EveryShapeThatCanRunHasALaunchablePlan) {
  int can_run = 0;
  for (const DeviceProperties& device : {kH200, kA100, kSmallestSlice}) {
    for (const std::int64_t num_ids : {0LL, 1LL, 33LL, 1024LL, 1025LL, 4096LL, 4097LL, 8193LL,
                                       65536LL, 1000003LL, 2147483647LL}) {
      for (const std::int64_t num_experts : {1LL, 8LL, 256LL, 1000LL, 7000LL, 14000LL, 65536LL}) {
        for (const std::int64_t max_loras : {1LL, 3LL, 8LL, 64LL, 1LL << 20}) {
          const LoraAlignBlockSizeShape shape{num_ids, 1, num_experts, max_loras, false};
          if (num_experts > max_lora_experts(device)) continue;
          ++can_run;
          const LoraPlan plan = plan_lora(shape, device);
          EXPECT_GE(plan.counting_warps, 1);
          EXPECT_LE(32 * plan.counting_warps, plan.num_threads);
          EXPECT_LE(plan.num_threads, kLoraMaxThreads);
          EXPECT_LE(plan.shared_bytes + kLoraStaticSharedBytes, device.max_shared_bytes);
          EXPECT_LE(plan.ctas_per_row, device.compute_capability < 90 ? 1 : kLoraMaxCtasPerRow);
          EXPECT_EQ(plan.ids_per_warp % 32, 0U);
          EXPECT_GE(std::int64_t{plan.ctas_per_row} * plan.counting_warps * plan.ids_per_warp,
                    num_ids);
        }
      }
    }
  }
  EXPECT_GT(can_run, 500);
}

TEST(LoraAlignBlockSizePolicy, ARowGetsMoreCtasTheLongerItIs) {
  const auto ctas = [](std::int64_t num_ids, std::int64_t block_size, std::int64_t max_loras) {
    return plan_lora({num_ids, block_size, 64, max_loras, false}, kH200).ctas_per_row;
  };
  EXPECT_EQ(ctas(512, 16, 8), 1);
  EXPECT_EQ(ctas(4096, 16, 8), 1);
  EXPECT_EQ(ctas(8192, 16, 8), 2);
  EXPECT_EQ(ctas(32768, 16, 8), 8);
  EXPECT_EQ(ctas(1 << 20, 16, 8), 8);
  EXPECT_EQ(ctas(512, 1024, 8), 8);   // many slots to fill
  EXPECT_EQ(ctas(32768, 16, 64), 2);  // as many rows as keep the device busy
  EXPECT_EQ(ctas(32768, 16, 1000), 1);
}

TEST(LoraAlignBlockSizePolicy, ClustersNeedTheirCodeAndTheWholeDevice) {
  const LoraAlignBlockSizeShape shape{32768, 16, 64, 8, false};
  constexpr DeviceProperties kOlderCode{90, 132, 227 * kKilobyte, 80};
  DeviceProperties partition = kH200;
  partition.available_sms = 64;
  EXPECT_EQ(plan_lora(shape, kH200).ctas_per_row, 8);
  EXPECT_EQ(plan_lora(shape, kOlderCode).ctas_per_row, 1);
  EXPECT_EQ(plan_lora(shape, partition).ctas_per_row, 1);
}

TEST(LoraAlignBlockSizePolicy, ExpertsAreLimitedBySharedMemory) {
  EXPECT_EQ(max_lora_experts(kH200), 14518);
  EXPECT_EQ(max_lora_experts(kA100), 10422);
  EXPECT_EQ(plan_lora({1 << 20, 16, 14518, 4, false}, kH200).counting_warps, 1);
  EXPECT_EQ(plan_lora({1 << 20, 16, 256, 4, false}, kH200).counting_warps, 32);
}

}  // namespace
}  // namespace tessera::cuda
