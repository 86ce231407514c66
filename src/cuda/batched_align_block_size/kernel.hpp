// What the launcher of batched_align_block_size and its kernel share, and how a launch is planned.
// No CUDA headers, so that it can be tested without a GPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/device_properties.hpp"
#include "cuda/parts/division.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// The arguments of the kernel. Members have the names and meaning of the op's contract.
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
static_assert(std::is_standard_layout_v<BatchedAlignBlockSizeKernelArgs>);

/// The kernel, for CTAs of kBatchedNumThreads threads.
const void* batched_align_block_size_kernel();
inline constexpr int kBatchedNumThreads = 512;

struct BatchedPlan {
  int num_ctas;
  std::size_t shared_bytes;  ///< dynamic
};

/// The kernel's dynamic shared memory.
struct BatchedLayout {
  Section<std::uint32_t> starts;  ///< the first slot of each batch, and the end of the last one

  constexpr explicit BatchedLayout(std::size_t num_batches) : starts(0, num_batches + 1) {}
  constexpr std::size_t bytes() const { return starts.end; }
};

/// Bound on the kernel's static shared memory.
inline constexpr std::size_t kBatchedStaticSharedBytes = 128;

/// The largest number of batches that fits into the shared memory of a CTA.
constexpr std::int64_t batched_max_batches(const DeviceProperties& device) {
  const std::size_t dynamic_bytes = device.max_shared_bytes - kBatchedStaticSharedBytes;
  const std::size_t bytes_per_batch = BatchedLayout(1).bytes() - BatchedLayout(0).bytes();
  return static_cast<std::int64_t>((dynamic_bytes - BatchedLayout(0).bytes()) / bytes_per_batch);
}

/// One CTA per 16 bytes and thread to write, but at most two per multiprocessor: CTAs do not wait
/// for each other, but each of them reads all counts.
constexpr BatchedPlan plan_batched(std::int64_t num_batches, std::int64_t capacity,
                                   const DeviceProperties& device) {
  constexpr std::int64_t kSlotsPerCta = kBatchedNumThreads * std::int64_t{4};
  const std::int64_t wanted = (capacity + kSlotsPerCta - 1) / kSlotsPerCta;
  const auto num_ctas =
      static_cast<int>(std::clamp<std::int64_t>(wanted, 1, 2 * std::int64_t{device.num_sms}));
  return {num_ctas, BatchedLayout(num_batches).bytes()};
}

}  // namespace tessera::cuda
