// How the kernel of lora_align_block_size is launched. Host code only, and a pure function of shape
// and device, so that it can be tested where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_properties.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace tessera::cuda {

/// A launch.
struct LoraPlan {
  int ctas_per_row = 0;
  int num_threads = 0;     ///< of a CTA
  int counting_warps = 0;  ///< of a CTA
  std::uint32_t ids_per_warp = 0;
  std::size_t shared_bytes = 0;  ///< dynamic
};

/// The most experts whose counters fit into the shared memory of a CTA.
std::int64_t max_lora_experts(const DeviceProperties& device);

/// How the kernel runs a shape of no more experts than that.
LoraPlan plan_lora(const LoraAlignBlockSizeShape& shape, const DeviceProperties& device);

}  // namespace tessera::cuda
