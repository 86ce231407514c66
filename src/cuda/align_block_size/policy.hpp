// Which kernel runs a shape, and how it is launched. Host code only, and a pure function of shape
// and device, so that it can be tested and explained where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/device_properties.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {

enum class Strategy { kFew, kOneCta, kRedundant, kCluster, kGrid, kWide };
inline constexpr int kNumStrategies = 6;

/// A launch.
struct Plan {
  Strategy strategy = Strategy::kFew;
  int num_ctas = 0;
  int num_threads = 0;     ///< of a CTA
  int ids_per_cta = 0;     ///< of its own
  int ids_per_thread = 0;  ///< at most
  bool fills_first = false;
  std::size_t shared_bytes = 0;  ///< dynamic
  std::size_t workspace_bytes = 0;
};

/// The choice for a shape.
struct Choice {
  Plan plan;
  bool is_measured = false;  ///< the thresholds were measured on this kind of device
};

/// What the policy runs. Every shape in the op's domain has a plan. In a partition of the device no
/// plan has a cluster, or waits for more CTAs than can run at once there; and none needs more
/// workspace than the plan for the whole device, which is all that the size query knows.
Choice choose(const AlignBlockSizeShape& shape, const DeviceProperties& device);

/// Whether the CTAs of a launch wait for each other, so that they have to run at the same time.
constexpr bool needs_all_ctas_at_once(Strategy strategy) {
  return strategy == Strategy::kCluster || strategy == Strategy::kGrid ||
         strategy == Strategy::kWide;
}

/// Why `strategy` cannot run a shape; null if it can.
const char* limitation(Strategy strategy, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device);

/// How `strategy`, which can run the shape, does so: as chosen if it is the policy's choice, else
/// as it runs the shapes nearest to it.
Plan plan_for(Strategy strategy, const AlignBlockSizeShape& shape, const DeviceProperties& device);

/// Why a plan cannot be launched for a shape; null if it can.
const char* limitation(const Plan& plan, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device);

/// What a strategy leaves open in a launch.
struct LaunchParameters {
  Strategy strategy;
  int num_threads;         ///< of a CTA
  int ids_per_cta;         ///< 0: all
  int min_ids_per_thread;  ///< more than needed leave warps without ids, and fewer counts to add up
};

/// A plan with stated parameters, launchable or not.
Plan make_plan(const LaunchParameters& launch, const AlignBlockSizeShape& shape,
               const DeviceProperties& device);

/// "grid: 64 CTAs of 512 threads, 2048 ids each, 37760 bytes of dynamic shared memory"
std::string to_string(const Plan& plan);

/// "few", "one_cta", ...
const char* name_of(Strategy strategy);

}  // namespace tessera::cuda
