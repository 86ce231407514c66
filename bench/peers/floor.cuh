// What no implementation can do without: one kernel in which every CTA reads its share of the ids,
// passes one barrier of the CTA, and writes its share of the outputs. It sorts nothing.
#pragma once

#include "launch.cuh"

namespace tessera::bench {

/// Arrays as words of 32 bits; those that kernels read or write four at a time begin at an address
/// that is a multiple of 16.
struct FloorArrays {
  const std::int32_t* ids;
  std::int32_t num_words;
  std::int32_t num_ids;
  std::int32_t* sorted_token_ids;
  std::int32_t capacity;
  std::int32_t* expert_ids;
  std::int32_t num_blocks;
  std::int32_t* num_tokens_post_pad;
};

static __global__ void __launch_bounds__(1024) floor_kernel(FloorArrays arrays) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  const std::int32_t stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  const auto* const quads = reinterpret_cast<const int4*>(arrays.ids);
  std::int32_t seen = 0;
  for (std::int32_t i = first; i < arrays.num_words / 4; i += stride) {
    const int4 quad = quads[i];
    seen |= quad.x | quad.y | quad.z | quad.w;
  }
  for (std::int32_t i = arrays.num_words / 4 * 4 + first; i < arrays.num_words; i += stride) {
    seen |= arrays.ids[i];
  }
  // Never true, as all ids are good; but what is written depends on what was read.
  const std::int32_t value = __syncthreads_or(seen < 0) != 0 ? -1 : arrays.num_ids;
  auto* const out = reinterpret_cast<int4*>(arrays.sorted_token_ids);
  for (std::int32_t i = first; i < arrays.capacity / 4; i += stride) {
    out[i] = make_int4(value, value, value, value);
  }
  for (std::int32_t i = arrays.capacity / 4 * 4 + first; i < arrays.capacity; i += stride) {
    arrays.sorted_token_ids[i] = value;
  }
  for (std::int32_t i = first; i < arrays.num_blocks; i += stride) arrays.expert_ids[i] = value;
  if (first == 0) *arrays.num_tokens_post_pad = value;
}

inline void floor_of(const FloorArrays& arrays, int num_ctas, bool pdl, cudaStream_t stream) {
  const std::int64_t quads_per_cta = std::max(arrays.num_words, arrays.capacity) / 4 / num_ctas;
  const auto num_threads = std::clamp<std::int64_t>((quads_per_cta + 31) / 32 * 32, 32, 1024);
  launch("floor_kernel", floor_kernel, num_ctas, static_cast<int>(num_threads), 0, stream, pdl,
         arrays);
}

static __global__ void empty_kernel() {}

}  // namespace tessera::bench
