#include "cuda/lora_align_block_size/policy.hpp"

#include <algorithm>

#include "cuda/lora_align_block_size/kernel.hpp"

namespace tessera::cuda {
namespace {

/// Above this many ids, or slots to fill, per CTA a row gets more CTAs.
constexpr std::int64_t kMaxIdsPerCta = 4096;
constexpr std::int64_t kMaxSlotsPerCta = 8192;

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Whether the counters of this many warps fit into shared memory.
bool fits(std::int64_t num_experts, int counting_warps, const DeviceProperties& device) {
  return LoraLayout(num_experts, counting_warps).bytes() + kLoraStaticSharedBytes <=
         device.max_shared_bytes;
}

}  // namespace

std::int64_t max_lora_experts(const DeviceProperties& device) {
  std::int64_t fitting = 0;
  auto too_many = static_cast<std::int64_t>(device.max_shared_bytes);
  while (too_many - fitting > 1) {
    const std::int64_t middle = (fitting + too_many) / 2;
    (fits(middle, 1, device) ? fitting : too_many) = middle;
  }
  return fitting;
}

LoraPlan plan_lora(const LoraAlignBlockSizeShape& shape, const DeviceProperties& device) {
  const std::int64_t num_slots =
      shape.num_ids + std::min(shape.num_ids, shape.num_experts) * (shape.block_size - 1);
  LoraPlan plan;
  plan.ctas_per_row = 1;
  // Clusters need compute capability 9.0, and may not fit into a partition of the device. More CTAs
  // than can run at once would save no time.
  while (device.code_capability >= 90 && !device.is_partitioned() &&
         plan.ctas_per_row < kLoraMaxCtasPerRow &&
         shape.max_loras * 2 * plan.ctas_per_row <= device.num_sms &&
         (shape.num_ids > plan.ctas_per_row * kMaxIdsPerCta ||
          num_slots > plan.ctas_per_row * kMaxSlotsPerCta)) {
    plan.ctas_per_row *= 2;
  }
  const std::int64_t ids_per_cta = div_up(shape.num_ids, plan.ctas_per_row);
  plan.num_threads = ids_per_cta <= 1024 ? 256 : ids_per_cta <= 2048 ? 512 : kLoraMaxThreads;
  plan.counting_warps =
      static_cast<int>(std::clamp<std::int64_t>(div_up(ids_per_cta, 32), 1, plan.num_threads / 32));
  while (!fits(shape.num_experts, plan.counting_warps, device)) --plan.counting_warps;
  const std::int64_t num_warps = std::int64_t{plan.ctas_per_row} * plan.counting_warps;
  plan.ids_per_warp = static_cast<std::uint32_t>(
      32 * std::max<std::int64_t>(1, div_up(shape.num_ids, 32 * num_warps)));
  plan.shared_bytes = LoraLayout(shape.num_experts, plan.counting_warps).bytes();
  return plan;
}

}  // namespace tessera::cuda
