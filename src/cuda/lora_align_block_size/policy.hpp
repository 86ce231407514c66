// How the kernel of lora_align_block_size is launched. A pure function of shape and device in host
// code, so that it can be tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device_properties.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace tessera::cuda {

/// How the kernel is launched.
struct LoraPlan {
  int ctas_per_row = 0;
  int num_threads = 0;     ///< per CTA
  int counting_warps = 0;  ///< per CTA
  std::uint32_t ids_per_warp = 0;
  std::size_t shared_bytes = 0;  ///< dynamic
};

/// The largest number of experts whose counters fit into the shared memory of a CTA.
std::int64_t max_lora_experts(const DeviceProperties& device);

/// The plan for a shape of at most that many experts.
LoraPlan plan_lora(const LoraAlignBlockSizeShape& shape, const DeviceProperties& device);

}  // namespace tessera::cuda
