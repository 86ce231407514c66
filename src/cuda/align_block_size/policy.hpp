// Which kernel runs a shape, and how it is launched. A pure function of shape and device in host
// code, so that it can be tested and explained without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/device_properties.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {

enum class Strategy { kFew, kOneCta, kRedundant, kCluster, kGrid, kWide };
inline constexpr int kNumStrategies = 6;

/// How a kernel is launched.
struct Plan {
  Strategy strategy = Strategy::kFew;
  int num_ctas = 0;
  int num_threads = 0;     ///< per CTA
  int ids_per_cta = 0;     ///< that a CTA places, at most
  int ids_per_thread = 0;  ///< at most
  bool fills_first = false;
  std::size_t shared_bytes = 0;  ///< dynamic
  std::size_t workspace_bytes = 0;
};

/// The policy's choice for a shape.
struct Choice {
  Plan plan;
  bool is_measured = false;  ///< its thresholds were measured on this kind of device
};

/// The plan for a shape; every shape in the op's domain has one. In a partition of the device, no
/// plan has a cluster or waits for more CTAs than can run there at once. Nor does one need more
/// workspace than the plan for the whole device, the only one that the size query knows.
Choice choose(const AlignBlockSizeShape& shape, const DeviceProperties& device);

/// Whether the CTAs of a launch wait for each other and so must run at the same time.
constexpr bool needs_all_ctas_at_once(Strategy strategy) {
  return strategy == Strategy::kCluster || strategy == Strategy::kGrid ||
         strategy == Strategy::kWide;
}

/// Why `strategy` cannot run a shape; null if it can.
const char* limitation(Strategy strategy, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device);

/// The plan of a strategy that can run the shape: the policy's plan if it chooses this strategy,
/// else the strategy's plan for the nearest shapes.
Plan plan_for(Strategy strategy, const AlignBlockSizeShape& shape, const DeviceProperties& device);

/// Why a plan cannot be launched for a shape; null if it can.
const char* limitation(const Plan& plan, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device);

/// The parameters of a launch that a strategy leaves open.
struct LaunchParameters {
  Strategy strategy;
  int num_threads;         ///< per CTA
  int ids_per_cta;         ///< 0: all
  int min_ids_per_thread;  ///< above what is needed, some warps get no ids and have no counts to
                           ///< add
};

/// The plan with these parameters, whether it can be launched or not.
Plan make_plan(const LaunchParameters& launch, const AlignBlockSizeShape& shape,
               const DeviceProperties& device);

/// "grid: 64 CTAs of 512 threads, 2048 ids each, 37760 bytes of dynamic shared memory"
std::string to_string(const Plan& plan);

/// "few", "one_cta", ...
const char* name_of(Strategy strategy);

}  // namespace tessera::cuda
