// What stands beside the op in an engine: a kernel that writes its input, and one that reads its
// outputs. Plain kernels of one pass, both launched without programmatic dependent launch, so that
// a call between them can hide nothing but its own prologue.
#pragma once

#include "launch.cuh"

namespace tessera::bench {

inline constexpr int kNeighbourThreads = 256;

template <typename Word>
__global__ void __launch_bounds__(kNeighbourThreads)
    write_input_kernel(const Word* values, Word* input, std::int32_t num_words) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x); i < num_words;
       i += stride) {
    input[i] = values[i];
  }
}

template <typename Word>
void write_input(const Word* values, Word* input, std::int32_t num_words, cudaStream_t stream) {
  launch("write_input_kernel", write_input_kernel<Word>, grid_for(num_words, kNeighbourThreads),
         kNeighbourThreads, 0, stream, false, values, input, num_words);
}

/// Outputs of an alignment op, of one row or of several.
struct ReadArrays {
  const std::int32_t* sorted_token_ids;
  std::int32_t capacity;  ///< of a row
  const std::int32_t* expert_ids;
  std::int32_t num_blocks;  ///< of all rows
  const std::int32_t* num_tokens_post_pad;
  std::int32_t num_rows;
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
  std::int32_t checksum = 0;
  for (std::int32_t i = first; i < arrays.num_blocks; i += stride) {
    checksum ^= arrays.expert_ids[i];
  }
  for (std::int32_t row = 0; row < arrays.num_rows; ++row) {
    const std::int32_t num_slots = min(arrays.num_tokens_post_pad[row], arrays.capacity);
    const std::int32_t* const slots = arrays.sorted_token_ids + row * arrays.capacity;
    checksum ^= num_slots;
    for (std::int32_t i = first; i < num_slots; i += stride) checksum ^= slots[i];
  }
  if (checksum == kWrittenChecksum) written_checksum = checksum;
}

/// The grid follows the capacity, since the host does not know how many slots are in use.
inline void read_outputs(const ReadArrays& arrays, cudaStream_t stream) {
  const std::int64_t num_slots = std::int64_t{arrays.capacity} * arrays.num_rows;
  launch("read_outputs_kernel", read_outputs_kernel, grid_for(num_slots, kNeighbourThreads),
         kNeighbourThreads, 0, stream, false, arrays);
}

/// Reads a whole array.
static __global__ void __launch_bounds__(kNeighbourThreads)
    read_array_kernel(const std::int32_t* words, std::int64_t num_words) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  std::int32_t checksum = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_words;
       i += stride) {
    checksum ^= words[i];
  }
  if (checksum == kWrittenChecksum) written_checksum = checksum;
}

inline void read_array(const std::int32_t* words, std::int64_t num_words, cudaStream_t stream) {
  launch("read_array_kernel", read_array_kernel, grid_for(num_words, kNeighbourThreads),
         kNeighbourThreads, 0, stream, false, words, num_words);
}

}  // namespace tessera::bench
