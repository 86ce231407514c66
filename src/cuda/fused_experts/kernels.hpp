// What the launcher of fused_experts and its kernels share. No CUDA headers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "cuda/parts/division.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::cuda {

/// One CTA multiplies a block of pairs of one expert by some of the expert's weights.
struct ProductTile {
  int pairs;    ///< rows of the tile: pairs in a block
  int columns;  ///< of the tile: rows of the weights
  int warps_along_pairs;
  int warps_along_columns;
  int num_stages;  ///< of kStageDepth elements that are in shared memory or on the way there
};

inline constexpr int kProductWarps = 4;
inline constexpr int kProductThreads = 32 * kProductWarps;
/// A row of a stage.
inline constexpr int kLineBytes = 128;
/// Terms of each sum in a line. In float8_e4m3fn they share scales where those are of blocks.
template <typename Operand>
inline constexpr int kLineDepth = kLineBytes / static_cast<int>(sizeof(Operand));
static_assert(kLineDepth<std::uint8_t> == core::kScaleBlock);
/// The same of 16 bits.
inline constexpr int kStageDepth = kLineDepth<std::uint16_t>;

/// By ascending number of pairs. Two CTAs of the largest share a multiprocessor's memory on compute
/// capability 8.0 and 9.0, and one fits into the 99 KiB of 8.6.
inline constexpr std::array<ProductTile, 4> kProductTiles{{
    {16, 64, 1, 4, 6},
    {32, 128, 1, 4, 4},
    {64, 128, 2, 2, 4},
    {128, 128, 2, 2, 3},
}};

/// How a product finds its weights in memory.
enum class WeightAccess : std::uint8_t {
  kRows,      ///< contiguous along the sum, in whole words of 16 bytes
  kColumns,   ///< contiguous along the output, in whole words of 16 bytes
  kElements,  ///< any strides and lengths
};
inline constexpr int kNumWeightAccesses = 3;

/// What a thread copies into shared memory at once: elements of 16 bits.
inline constexpr int kWordElements = 8;
inline constexpr std::uint32_t kWordBytes = 16;

/// Shared memory of a product: the stages, which its sums replace at the end.
constexpr std::size_t product_shared_bytes(const ProductTile& tile) {
  const int stages = tile.num_stages * (tile.pairs + tile.columns) * kLineBytes;
  // Two words of padding keep the rows of the sums apart in the banks.
  const int sums = tile.pairs * (tile.columns + 8) * 4;
  return static_cast<std::size_t>(stages > sums ? stages : sums);
}

/// Static shared memory of a product, at most.
inline constexpr std::size_t kProductStaticSharedBytes = 1024;

/// Which scales the operands of a product have. Kernels that are the same otherwise have it as a
/// template argument.
enum class Scaling : std::uint8_t {
  kNone,    ///< numbers of 16 bits
  kBlocks,  ///< float8_e4m3fn, with scales of 128 terms
  kRows,    ///< float8_e4m3fn, with scales of whole rows, of tensors too
};
inline constexpr int kNumScalings = 3;

/// The arguments of both products. Strides are in elements.
struct ProductArgs {
  const void* rows;  ///< x, or the activated intermediate
  const void* weights;
  const void* bias;  ///< null: none
  void* output;      ///< the intermediate [pair, F] or weighted rows [pair, H], of the type of x
  // What align_block_size writes.
  const std::int32_t* sorted_pairs;
  const std::int32_t* block_experts;
  const std::int32_t* num_slots;
  std::int32_t num_pairs;
  std::uint32_t num_blocks;  ///< at most
  Division slots_per_row;    ///< pairs that share a row: top_k, or 1
  std::int64_t row_stride;
  std::int64_t expert_stride;
  std::int64_t weight_row_stride;
  std::int64_t weight_column_stride;
  std::int64_t bias_stride;
  std::int64_t output_stride;
  std::int32_t depth;         ///< terms of each sum
  std::int32_t num_outputs;   ///< F, or H
  std::uint32_t num_columns;  ///< CTAs along the outputs
  bool is_gated;              ///< the weights hold a row of gate and one of up for each output
  bool is_interleaved;        ///< in turns
  Activation activation;
  float swiglu_alpha;
  float swiglu_beta;
  float swiglu_limit;
  const void* topk_weights;  ///< which scale the sums; null: all are 1
  std::int64_t topk_weights_stride;
  DLDataType topk_weights_dtype;
  std::int32_t top_k;
  Division slots_per_token;
};

/// A kernel of kProductThreads threads and product_shared_bytes() of dynamic shared memory, with a
/// CTA for each block and column, or null: kElements has only one tile.
const void* gate_up_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile);
const void* down_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile);
/// The tile of kElements.
inline constexpr std::size_t kElementsTile = 1;

/// The same of products of numbers in float8_e4m3fn. The gate-up product then writes float32.
struct Fp8ProductArgs : ProductArgs {
  core::ExpertScales weight_scales;
  const float* row_scales;
  std::int64_t row_scale_stride;  ///< 0: all rows have the same
};

/// A kernel as above for Fp8ProductArgs, for weights by rows or by elements. `is_bfloat16`: biases
/// and the rows of the down product are.
const void* fp8_gate_up_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile);
const void* fp8_down_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile);
/// Its tiles are the first ones: a thread keeps two sets of sums.
inline constexpr std::size_t kNumFp8Tiles = 3;

/// Which experts pairs go to. Strides are in elements.
struct PairsArgs {
  const void* topk_ids;
  const std::int32_t* expert_map;  ///< null: there is none, or it has no entries
  std::int32_t* experts;           ///< [pair], -1 for a pair that does not count
  bool ids_are_64_bit;
  std::int32_t top_k;
  Division slots_per_token;
  std::int32_t num_pairs;
  std::int64_t topk_ids_stride;
  std::int64_t num_global_experts;  ///< ids from here on do not count
  std::int64_t num_experts;
};

/// A thread per pair, in CTAs of kPairsThreads.
const void* pairs_kernel();
inline constexpr int kPairsThreads = 256;

/// The sum of the weighted rows of each token. Strides are in elements.
struct CombineArgs {
  const void* rows;      ///< weighted [pair, hidden size] of the type of x
  const void* topk_ids;  ///< pairs whose id is not an expert do not count
  void* output;
  bool ids_are_64_bit;
  bool has_vectors;  ///< the output has whole words of kCombineBytes
  std::int32_t top_k;
  std::int32_t hidden_size;
  std::uint32_t ctas_per_token;
  std::int64_t topk_ids_stride;
  std::int64_t num_experts;
  std::int64_t row_stride;
  std::int64_t output_stride;
};

/// A thread for kCombineElements elements of a token, in CTAs of kCombineThreads. With at most
/// kFewSlots slots there is a kernel with fewer registers.
const void* combine_kernel(bool is_bfloat16, bool has_few_slots);
inline constexpr int kFewSlots = 2;
inline constexpr int kCombineThreads = 128;
inline constexpr int kCombineElements = 8;
inline constexpr std::uint32_t kCombineBytes = 16;  ///< of these

}  // namespace tessera::cuda
