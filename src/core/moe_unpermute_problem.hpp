// What an implementation of moe_unpermute takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps. Strides are in
/// elements, as stride_of() has them.
struct MoeUnpermuteProblem {
  const void* rows;
  const float* topk_weights;    ///< null: all are 1
  const std::int32_t* inverse;  ///< any values
  void* output;
  DLDataType dtype;  ///< of rows and output
  std::int64_t num_rows;
  std::int64_t num_tokens;
  std::int64_t top_k;  ///< at least 1
  std::int64_t hidden_size;
  std::int64_t row_stride;
  std::int64_t output_stride;
};

}  // namespace tessera::core
