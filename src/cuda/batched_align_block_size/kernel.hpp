// What the launcher of batched_align_block_size and its kernel share, and how a launch is planned:
// host code only, so that it can be tested where there is no GPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/device_properties.hpp"
#include "cuda/parts/division.hpp"

namespace tessera::cuda {

/// Names and meaning are those of the op's contract.
struct BatchedAlignBlockSizeKernelArgs {
  const std::int32_t* expert_num_tokens;
  std::int32_t num_batches;
  std::int32_t max_tokens_per_batch;
  std::int32_t block_size;
  Division block_division;
  std::int32_t tail_expert;
  std::int32_t filler;

  std::int32_t* sorted_token_ids;
  std::int64_t sorted_token_ids_length;
  std::int32_t* expert_ids;
  std::int64_t expert_ids_length;
  std::int32_t* num_tokens_post_pad;
};

/// For CTAs of kBatchedNumThreads threads.
const void* batched_align_block_size_kernel();
inline constexpr int kBatchedNumThreads = 512;

struct BatchedPlan {
  int num_ctas;
  std::size_t shared_bytes;  ///< dynamic
};

/// Besides its dynamic shared memory the kernel has a word a warp.
inline constexpr std::size_t kBatchedStaticSharedBytes = 128;

/// Every CTA keeps the first slot of every batch, and where the last one ends.
constexpr std::size_t batched_shared_bytes(std::int64_t num_batches) {
  return sizeof(std::int32_t) * (static_cast<std::size_t>(num_batches) + 1);
}

/// The most batches that a device can take.
constexpr std::int64_t batched_max_batches(const DeviceProperties& device) {
  const std::size_t dynamic_bytes = device.max_shared_bytes - kBatchedStaticSharedBytes;
  return static_cast<std::int64_t>(dynamic_bytes / sizeof(std::int32_t)) - 1;
}

/// As many CTAs as give every thread a word of 16 bytes to write, up to two on every
/// multiprocessor: they do not wait for each other, but each of them reads all counts.
constexpr BatchedPlan plan_batched(std::int64_t num_batches, std::int64_t capacity,
                                   const DeviceProperties& device) {
  constexpr std::int64_t kSlotsPerCta = kBatchedNumThreads * std::int64_t{4};
  const std::int64_t wanted = (capacity + kSlotsPerCta - 1) / kSlotsPerCta;
  const auto num_ctas =
      static_cast<int>(std::clamp<std::int64_t>(wanted, 1, 2 * std::int64_t{device.num_sms}));
  return {num_ctas, batched_shared_bytes(num_batches)};
}

}  // namespace tessera::cuda
