// What an implementation of moe_permute takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

namespace tessera::core {

/// A validated call: every pointer is good for its shape, and nothing overlaps. Strides are in
/// elements, as stride_of() has them.
struct MoePermuteProblem {
  const void* x;
  const void* topk_ids;
  const std::int32_t* expert_map;
  bool has_map;  ///< else ids are experts
  void* rows;
  std::int32_t* expert_offsets;
  std::int32_t* inverse;
  DLDataType dtype;  ///< of x and rows
  DLDataType topk_ids_dtype;
  std::int64_t num_tokens;
  std::int64_t top_k;  ///< at least 1
  std::int64_t hidden_size;
  std::int64_t num_experts;
  std::int64_t num_global_experts;  ///< ids from here on do not count
  std::int64_t block_size;
  std::int64_t capacity;  ///< rows that `rows` has
  std::int64_t x_stride;
  std::int64_t rows_stride;

  std::int64_t num_pairs() const { return num_tokens * top_k; }
  std::int64_t row_bytes() const { return hidden_size * (dtype.bits / 8); }
};

}  // namespace tessera::core
