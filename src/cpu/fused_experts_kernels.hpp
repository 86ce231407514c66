// What the driver of fused_experts asks of the code for one instruction set and data type.
#pragma once

#include <cstdint>

#include "cpu/floating_point.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::cpu {

/// How vectors of one length lie in memory for a product: in the kernels' own data type, cut into
/// blocks of `width` elements, the rest of the last step filled with zeros. Element k of vector i
/// lies at (k / width) * block_stride + i * width + k % width; next to weights in float8_e4m3fn the
/// elements of a step lie in the order in which such weights are widened.
struct PackedLayout {
  std::int64_t length;
  std::int64_t width;
  std::int64_t block_stride;
};

/// The weights of one product's rows. Strides are in elements; one of them is 1.
struct WeightRows {
  const void* data;
  std::int64_t row_stride;
  std::int64_t column_stride;
  std::int64_t num_rows;
  // Of weights in float8_e4m3fn.
  const float* const* scales;  ///< of each row: one for each block of `layout`, or one alone
  bool has_scale_per_block;
};

/// sums[token * sums_stride + row] = the product of each row with each token.
struct PanelProduct {
  WeightRows weights;
  const void* next_rows;  ///< what is likely to be multiplied next, and prefetched
  PackedLayout layout;
  const void* tokens;
  std::int64_t num_tokens;
  float* sums;
  std::int64_t sums_stride;  ///< at least num_rows, rounded up to kRowAlignment
  void* packed_weights;      ///< kMaxPanelRows * width elements of the kernels' data type
  void* partial_sums;        ///< partial_sums_bytes(num_tokens)
};

/// What becomes of the sums of one pair: scale * sums + bias, the activation, and, unless it is to
/// be quantised, its rounding to the data type of x. Arrays of bias are null or hold elements
/// bias_stride apart.
struct ActivatedRow {
  Activation activation;
  float alpha;
  float beta;
  float limit;
  float scale;
  float* gate;  ///< overwritten
  float* up;    ///< with a gate alone; kSwigluoai has both in `gate`, interleaved
  const void* gate_bias;
  const void* up_bias;
  std::int64_t first;  ///< the place of the first element in the packed vector
  std::int64_t size;   ///< at most kMaxActivated
  PackedLayout layout;
  void* packed;  ///< the vector's element 0
};

struct ExpertKernels {
  std::int64_t element_bytes;  ///< of the data type of x; with scales, of what is in no fp8
  std::int64_t weight_bytes;   ///< of an element of the weights
  std::int64_t packed_bytes;   ///< of an element of a packed vector
  std::int64_t step;           ///< elements that are multiplied at once; widths are multiples of it
  void (*pack)(const void* elements, std::int64_t first, std::int64_t size,
               const PackedLayout& layout, void* packed);
  /// Packs `size` elements, of one block, times their scale. With weights in float8_e4m3fn alone.
  void (*pack_fp8)(const Float8E4m3* elements, std::int64_t size, float scale, float* packed);
  void (*multiply)(const PanelProduct& product);
  void (*activate)(const ActivatedRow& row);
  /// sums[i] += scale * (row[i] + bias[i]); `bias` may be null.
  void (*add_scaled)(const float* row, const void* bias, float scale, std::int64_t size,
                     float* sums);
  /// Rounds to the data type of x.
  void (*round)(const float* sums, std::int64_t size, void* elements);
};

/// Rows of floats of at most this length are activated at once, in whole vector registers.
inline constexpr std::int64_t kMaxActivated = 96;
inline constexpr std::int64_t kRowAlignment = 16;
inline constexpr std::int64_t kMaxPanelRows = 32;
/// A block of a packed vector: short enough that some rows of weights and of tokens fit into the L1
/// cache together.
inline constexpr std::int64_t kMaxBlockBytes = 2048;

/// One vector register per row and token.
constexpr std::int64_t partial_sums_bytes(std::int64_t num_tokens) {
  constexpr std::int64_t kMaxVectorBytes = 64;
  constexpr std::int64_t kMaxLanes = 16;
  return kMaxPanelRows * (num_tokens + kMaxLanes) * kMaxVectorBytes;
}

/// The kernels of one instruction set for each data type; null: it has none.
struct ExpertKernelSet {
  const ExpertKernels* float32;
  const ExpertKernels* bfloat16;
  const ExpertKernels* float16;
  // With weights in float8_e4m3fn, by the data type of the output.
  const ExpertKernels* fp8_float32;
  const ExpertKernels* fp8_bfloat16;
  const ExpertKernels* fp8_float16;
};

extern const ExpertKernelSet kAvx512Bf16ExpertKernels;
extern const ExpertKernelSet kAvx512ExpertKernels;
extern const ExpertKernelSet kAvx2ExpertKernels;
extern const ExpertKernelSet kPortableExpertKernels;

}  // namespace tessera::cpu
