// What stands beside the op in an engine: a kernel that writes the ids, and one that reads the
// outputs. Plain kernels of one pass, both launched without programmatic dependent launch, so that
// a call between them can hide nothing but its own prologue.
#pragma once

#include "launch.cuh"

namespace tessera::bench {

inline constexpr int kNeighbourThreads = 256;

template <typename Id>
__global__ void __launch_bounds__(kNeighbourThreads)
    write_ids_kernel(const Id* source, Id* topk_ids, std::int32_t num_ids) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x); i < num_ids;
       i += stride) {
    topk_ids[i] = source[i];
  }
}

template <typename Id>
void write_ids(const Id* source, Id* topk_ids, std::int32_t num_ids, cudaStream_t stream) {
  launch("write_ids_kernel", write_ids_kernel<Id>, grid_for(num_ids, kNeighbourThreads),
         kNeighbourThreads, 0, stream, false, source, topk_ids, num_ids);
}

struct ReadArrays {
  const std::int32_t* sorted_token_ids;
  std::int32_t capacity;
  const std::int32_t* expert_ids;
  std::int32_t num_blocks;
  const std::int32_t* num_tokens_post_pad;
};

/// The checksum of outputs that happen to have this one: never otherwise written, but the compiler
/// cannot know, and so has to read them.
inline constexpr std::int32_t kWrittenChecksum = 0x5eed5eed;
static __device__ std::int32_t written_checksum;

/// Reads all experts of blocks, and the slots that are in use, as the kernel after the op does: it
/// learns their number from the op.
static __global__ void __launch_bounds__(kNeighbourThreads) read_outputs_kernel(ReadArrays arrays) {
  const auto first = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  const auto stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  const std::int32_t num_slots = min(*arrays.num_tokens_post_pad, arrays.capacity);
  std::int32_t checksum = num_slots;
  for (std::int32_t i = first; i < arrays.num_blocks; i += stride) {
    checksum ^= arrays.expert_ids[i];
  }
  for (std::int32_t i = first; i < num_slots; i += stride) checksum ^= arrays.sorted_token_ids[i];
  if (checksum == kWrittenChecksum) written_checksum = checksum;
}

/// The grid follows the capacity, since the host does not know how many slots are in use.
inline void read_outputs(const ReadArrays& arrays, cudaStream_t stream) {
  launch("read_outputs_kernel", read_outputs_kernel, grid_for(arrays.capacity, kNeighbourThreads),
         kNeighbourThreads, 0, stream, false, arrays);
}

}  // namespace tessera::bench
