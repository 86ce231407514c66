// The CUDA policy: a pure function of shape and device, tested without a GPU.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/policy.hpp"

namespace tessera::cuda {
namespace {

constexpr std::size_t kKilobyte = 1024;
constexpr DeviceProperties kH200{90, 132, 227 * kKilobyte};
constexpr DeviceProperties kA100{80, 108, 163 * kKilobyte};
constexpr DeviceProperties kL4{89, 58, 99 * kKilobyte};
constexpr DeviceProperties kSmallestSlice{90, 16, 227 * kKilobyte};  // an eighth of an H200
// An H200 that runs what the driver compiled from PTX for 8.0.
constexpr DeviceProperties kH200OlderCode{90, 132, 227 * kKilobyte, 80};
constexpr DeviceProperties kDevices[] = {kH200, kA100, kL4, kSmallestSlice, kH200OlderCode};

DeviceProperties partition(DeviceProperties device, int available_sms) {
  device.available_sms = available_sms;
  return device;
}

constexpr Strategy kStrategies[] = {Strategy::kFew,     Strategy::kOneCta, Strategy::kRedundant,
                                    Strategy::kCluster, Strategy::kGrid,   Strategy::kWide};

std::vector<AlignBlockSizeShape> shapes() {
  std::vector<AlignBlockSizeShape> all;
  for (const std::int64_t num_ids :
       {0LL,       1LL,       31LL,        32LL,        33LL,     255LL,    257LL,
        512LL,     1000LL,    1025LL,      2049LL,      8192LL,   8193LL,   16385LL,
        32768LL,   65535LL,   65536LL,     131073LL,    270337LL, 540672LL, 540673LL,
        2162688LL, 2162689LL, 100000000LL, 2147483647LL}) {
    for (const std::int64_t num_experts :
         {1LL, 8LL, 64LL, 65LL, 129LL, 256LL, 512LL, 1000LL, 3000LL, 65534LL, 65536LL, 1LL << 30}) {
      all.push_back({num_ids, 1, num_experts, false});
      all.push_back({num_ids, 128, num_experts, false});
    }
  }
  return all;
}

std::string text_of(const AlignBlockSizeShape& shape, const DeviceProperties& device) {
  return std::to_string(shape.num_ids) + " ids, " + std::to_string(shape.num_experts) +
         " experts, sm_" + std::to_string(device.compute_capability) + " with " +
         std::to_string(device.num_sms) + " SMs";
}

/// What a launch must satisfy for the kernel to be right.
void expect_launchable(const Plan& plan, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device) {
  SCOPED_TRACE(text_of(shape, device) + ": " + to_string(plan));
  EXPECT_EQ(limitation(plan, shape, device), nullptr);
  EXPECT_GE(plan.num_ctas, 1);
  EXPECT_GE(std::int64_t{plan.num_ctas} * plan.ids_per_cta, shape.num_ids);
  if (plan.shared_bytes != 0) {
    EXPECT_LE(plan.shared_bytes + kStaticSharedBytes, device.max_shared_bytes);
  }
  const bool waits_for_all = plan.strategy == Strategy::kGrid || plan.strategy == Strategy::kWide;
  if (waits_for_all) {
    EXPECT_LE(plan.num_ctas, device.available_sms);
    // Whatever the address of the caller's workspace, there is room behind the first aligned one.
    const std::size_t used = plan.strategy == Strategy::kGrid
                                 ? GridWorkspace(shape.num_experts, plan.num_ctas).bytes()
                                 : WideWorkspace(shape.num_experts, plan.num_ctas).bytes();
    EXPECT_GE(plan.workspace_bytes, used + kWorkspaceAlignment - 1);
  }
  EXPECT_EQ(plan.workspace_bytes != 0, waits_for_all);
  if (plan.strategy != Strategy::kWide) {
    EXPECT_GE(std::int64_t{plan.num_threads} * plan.ids_per_thread, plan.ids_per_cta);
  }
  if (plan.strategy == Strategy::kRedundant) {
    // A warp ranks its 32 ids once, and counts are kept in 16 bits.
    EXPECT_EQ(plan.ids_per_cta % 32, 0);
    EXPECT_LE(plan.ids_per_cta, plan.num_threads);
    EXPECT_LT(shape.num_ids, 65536);
  }
  if (plan.strategy != Strategy::kFew && plan.strategy != Strategy::kWide) {
    // The bucket of an id has 16 bits.
    EXPECT_LE(shape.num_experts + 1, 65535);
  }
  if (plan.strategy == Strategy::kGrid) {
    // So has the index of an id within its CTA.
    EXPECT_LE(plan.ids_per_cta, 65536);
  }
}

TEST(AlignBlockSizePolicy, EveryShapeHasALaunchablePlanOnEveryDevice) {
  for (const DeviceProperties& device : kDevices) {
    for (const AlignBlockSizeShape& shape : shapes()) {
      expect_launchable(choose(shape, device).plan, shape, device);
    }
  }
}

TEST(AlignBlockSizePolicy, EveryStrategyThatCanRunAShapeHasALaunchablePlan) {
  for (const DeviceProperties& device : kDevices) {
    for (const AlignBlockSizeShape& shape : shapes()) {
      for (const Strategy strategy : kStrategies) {
        if (limitation(strategy, shape, device) != nullptr) continue;
        const Plan plan = plan_for(strategy, shape, device);
        EXPECT_EQ(plan.strategy, strategy);
        expect_launchable(plan, shape, device);
      }
    }
  }
}

TEST(AlignBlockSizePolicy, AChosenStrategyIsPlannedAsChosen) {
  for (const AlignBlockSizeShape& shape : shapes()) {
    const Plan chosen = choose(shape, kH200).plan;
    EXPECT_EQ(to_string(plan_for(chosen.strategy, shape, kH200)), to_string(chosen));
  }
}

TEST(AlignBlockSizePolicy, StrategyGrowsWithTheNumberOfIds) {
  const auto chosen = [](std::int64_t num_ids, std::int64_t num_experts) {
    return std::string(name_of(choose({num_ids, 16, num_experts, false}, kH200).plan.strategy));
  };
  EXPECT_EQ(chosen(0, 64), "few");
  EXPECT_EQ(chosen(2, 64), "few");
  EXPECT_EQ(chosen(128, 256), "one_cta");
  EXPECT_EQ(chosen(2048, 256), "redundant");
  EXPECT_EQ(chosen(8192, 64), "cluster");
  EXPECT_EQ(chosen(8192, 256), "redundant");
  EXPECT_EQ(chosen(32768, 256), "grid");
  EXPECT_EQ(chosen(2097152, 256), "grid");
  // More ids than the registers of all CTAs hold, more experts than shared memory has counters for.
  EXPECT_EQ(chosen(10000000, 256), "wide");
  EXPECT_EQ(chosen(4096, 65536), "wide");
}

TEST(AlignBlockSizePolicy, OneCtaDoesNotFillWhatSeveralCouldFill) {
  EXPECT_EQ(choose({32, 16, 64, false}, kH200).plan.strategy, Strategy::kFew);
  const Plan plan = choose({32, 1 << 20, 64, false}, kH200).plan;
  EXPECT_NE(plan.strategy, Strategy::kFew);
  EXPECT_EQ(plan.num_ctas, kH200.num_sms);
}

TEST(AlignBlockSizePolicy, SaysWhichDevicesItWasMeasuredOn) {
  const AlignBlockSizeShape shape{4096, 64, 64, false};
  EXPECT_TRUE(choose(shape, kH200).is_measured);
  EXPECT_FALSE(choose(shape, kA100).is_measured);
  EXPECT_FALSE(choose(shape, kSmallestSlice).is_measured);
  // Neither the number of multiprocessors nor the generation alone makes it the same device.
  EXPECT_FALSE(choose(shape, {100, 132, 227 * kKilobyte}).is_measured);
  EXPECT_FALSE(choose(shape, {90, 114, 227 * kKilobyte}).is_measured);
  EXPECT_FALSE(choose(shape, kH200OlderCode).is_measured);
  EXPECT_FALSE(choose(shape, partition(kH200, 131)).is_measured);
}

TEST(AlignBlockSizePolicy, UnmeasuredDevicesGetNoStrategyTunedToOne) {
  for (const DeviceProperties& device : {kA100, kH200OlderCode}) {
    for (const AlignBlockSizeShape& shape : shapes()) {
      const Strategy strategy = choose(shape, device).plan.strategy;
      EXPECT_TRUE(strategy != Strategy::kRedundant && strategy != Strategy::kCluster)
          << text_of(shape, device);
    }
  }
}

TEST(AlignBlockSizePolicy, ClustersNeedHopper) {
  const AlignBlockSizeShape shape{4096, 64, 64, false};
  EXPECT_STREQ(limitation(Strategy::kCluster, shape, kA100), "needs compute capability 9.0");
  EXPECT_EQ(limitation(Strategy::kCluster, shape, kH200), nullptr);
  EXPECT_STREQ(limitation(Strategy::kCluster, shape, kH200OlderCode),
               "needs code built for compute capability 9.0");
  EXPECT_STREQ(limitation(Strategy::kCluster, shape, partition(kH200, 64)),
               "needs all multiprocessors of the device");
}

TEST(AlignBlockSizePolicy, APartitionRunsWhatFitsIntoItInTheWorkspaceOfTheDevice) {
  for (const DeviceProperties& device : kDevices) {
    for (const int available_sms : {1, 2, 4, 7, 8, 16, 57, 64, 131}) {
      if (available_sms >= device.num_sms) continue;
      const DeviceProperties part = partition(device, available_sms);
      for (const AlignBlockSizeShape& shape : shapes()) {
        const Plan whole = choose(shape, device).plan;
        const Plan plan = choose(shape, part).plan;
        expect_launchable(plan, shape, part);
        EXPECT_NE(plan.strategy, Strategy::kCluster) << text_of(shape, part);
        EXPECT_LE(plan.workspace_bytes, whole.workspace_bytes) << text_of(shape, part);
        if (limitation(whole, shape, part) == nullptr) {
          EXPECT_EQ(to_string(plan), to_string(whole));
        }
      }
    }
  }
}

TEST(AlignBlockSizePolicy, LimitationsNameTheLimit) {
  EXPECT_STREQ(limitation(Strategy::kFew, {33, 16, 8, false}, kH200), "takes at most 32 ids");
  EXPECT_STREQ(limitation(Strategy::kRedundant, {65536, 16, 8, false}, kH200),
               "takes at most 65535 ids");
  EXPECT_STREQ(limitation(Strategy::kOneCta, {100, 16, 65536, false}, kH200),
               "needs more shared memory for this number of experts than the device has");
  EXPECT_EQ(limitation(Strategy::kWide, {2147483647, 1, 1 << 30, false}, kA100), nullptr);
}

TEST(AlignBlockSizePolicy, WorkspaceOfTheWideKernelStaysBounded) {
  // There is one row of counts per CTA, so long rows allow fewer CTAs.
  const Plan plan = choose({1 << 20, 16, 1 << 24, false}, kH200).plan;
  EXPECT_EQ(plan.num_ctas, 4);
  EXPECT_LT(plan.workspace_bytes, std::size_t{1} << 29);
}

}  // namespace
}  // namespace tessera::cuda
