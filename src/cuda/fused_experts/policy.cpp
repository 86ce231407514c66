#include "cuda/fused_experts/policy.hpp"

#include <algorithm>

#include "tessera/align_block_size.hpp"

namespace tessera::cuda {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;

/// The mean number of pairs of an expert from which on a tile is worth its padding.
constexpr std::array<std::int64_t, kProductTiles.size()> kMinPairsPerExpert{0, 12, 32, 128};
/// The same of the kernels for 9.0a, where sums are long or not.
constexpr std::int64_t kLongSum = 4096;
constexpr std::int64_t kMinPairsOfWgmma = 12;
constexpr std::int64_t kMinPairsOfLongWgmma = 2;
/// Operands are exchanged up to these mean numbers of pairs of an expert: in blocks of kSwapAbPairs
/// up to the first one, in blocks of 48 up to the second one. Few experts then have two blocks, of
/// which the second one reads the weights again.
constexpr std::int64_t kMaxPairsOfSwapAb = kSwapAbPairs / 2;
constexpr std::int64_t kMaxPairsOfSwapAbOf48 = 32;
/// With up to 8 pairs: from this F on the down product's tiles of 64 rows are long enough, and the
/// gate-up product's are so many that they need not be halved.
constexpr std::int64_t kMinIntermediateOfHalfTiles = 512;
/// Weights that are read once leave the L2 cache first, so that the rows of pairs stay there. The
/// blocks of an expert read its tiles at about the same time, and so as if once, if a tile has at
/// most this size. Weights in short rows leave first only in fp8, and only where experts have few
/// pairs on average.
constexpr std::int64_t kMaxBytesOfSharedTile = std::int64_t{512} << 10;
constexpr std::int64_t kMaxBytesOfShortRow = 512;
constexpr std::int64_t kMaxPairsOfShortFp8Rows = 2;
/// With more tokens, fetching the first weights ahead no longer makes calls faster.
constexpr std::int64_t kMaxTokensOfPrefetch = 16;
/// The kernels for 9.0a count terms in int32, and go on by some hundred at once.
constexpr std::int64_t kMaxDepthOf90a = std::int64_t{1} << 30;
/// The tiling of shorter products in float8_e4m3fn.
constexpr std::size_t kFewRowsFp8Tiling = kSwapAbOf16PairsTiling;

std::int64_t mean_pairs_of_expert(const FusedExpertsProblem& problem, std::int64_t num_tokens) {
  const std::int64_t pairs = num_tokens * problem.top_k;
  return pairs / std::max<std::int64_t>(1, std::min(pairs, problem.num_experts));
}

bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % kWordBytes == 0;
}

bool are_words(std::int64_t a, std::int64_t b = 0, std::int64_t c = 0) {
  return a % kWordElements == 0 && b % kWordElements == 0 && c % kWordElements == 0;
}

bool are_fp8_words(std::int64_t a, std::int64_t b = 0, std::int64_t c = 0) {
  return a % kWordBytes == 0 && b % kWordBytes == 0 && c % kWordBytes == 0;
}

/// `depth` is the number of terms of a sum, `run` the number of outputs whose weights follow each
/// other in memory if the weights are transposed.
WeightAccess access_of(const ExpertWeights& weights, std::int64_t depth, std::int64_t run) {
  if (!is_aligned(weights.data) || !are_words(depth, weights.expert_stride)) {
    return WeightAccess::kElements;
  }
  if (weights.column_stride == 1 && are_words(weights.row_stride)) return WeightAccess::kRows;
  if (weights.column_stride != 1 && are_words(weights.column_stride, run)) {
    return WeightAccess::kColumns;
  }
  return WeightAccess::kElements;
}

/// The same of weights in float8_e4m3fn, which are not read by columns.
WeightAccess fp8_access_of(const ExpertWeights& weights, std::int64_t depth) {
  const bool has_words = is_aligned(weights.data) && weights.column_stride == 1 &&
                         are_fp8_words(depth, weights.expert_stride, weights.row_stride);
  return has_words ? WeightAccess::kRows : WeightAccess::kElements;
}

std::int64_t bytes_per_token(const FusedExpertsProblem& problem) {
  const std::int64_t intermediate = padded_row(problem.intermediate_size);
  const std::int64_t rows = problem.top_k * 2 * padded_row(problem.hidden_size);
  if (!problem.has_fp8_weights()) return rows + problem.top_k * 2 * intermediate;
  const auto quantised = [&](std::int64_t elements) {
    return padded_fp8_row(elements) + 4 * scales_per_row(problem, elements);
  };
  return rows + (problem.is_x_fp8 ? 0 : quantised(problem.hidden_size)) +
         problem.top_k * (4 * intermediate + quantised(problem.intermediate_size));
}

}  // namespace

ProductAccesses accesses_of(const FusedExpertsProblem& problem) {
  if (problem.has_fp8_weights()) {
    ProductAccesses accesses{fp8_access_of(problem.w13, problem.hidden_size),
                             fp8_access_of(problem.w2, problem.intermediate_size)};
    if (problem.is_x_fp8 && (!is_aligned(problem.x) || !are_fp8_words(problem.x_stride))) {
      accesses.gate_up = WeightAccess::kElements;
    }
    return accesses;
  }
  const bool interleaved = problem.activation == Activation::kSwigluoai;
  ProductAccesses accesses{
      access_of(problem.w13, problem.hidden_size,
                interleaved ? problem.num_gate_up_rows() : problem.intermediate_size),
      access_of(problem.w2, problem.intermediate_size, problem.hidden_size)};
  if (!is_aligned(problem.x) || !are_words(problem.x_stride)) {
    accesses.gate_up = WeightAccess::kElements;
  }
  return accesses;
}

ProductStrategy choose_strategy(const FusedExpertsProblem& problem, bool has_wgmma) {
  if (accesses_of(problem).has_elements()) return kElementsTile;
  const std::int64_t per_expert = mean_pairs_of_expert(problem, problem.num_tokens);
  const std::int64_t most = problem.has_fp8_weights() ? kMaxPairsOfSwapAb : kMaxPairsOfSwapAbOf48;
  if (has_wgmma && per_expert <= most && limitation(kSwapAb, problem) == nullptr) {
    return kSwapAb;
  }
  // Tensor cores add products in float8_e4m3fn with fewer bits than the other kernels do: these
  // take calls of all sizes, so that results do not depend on it.
  if (has_wgmma && problem.has_fp8_weights() && limitation(kWgmma, problem) == nullptr) {
    return kWgmma;
  }
  const bool is_long = problem.hidden_size >= kLongSum;
  if (has_wgmma && per_expert >= (is_long ? kMinPairsOfLongWgmma : kMinPairsOfWgmma) &&
      limitation(kWgmma, problem) == nullptr) {
    return kWgmma;
  }
  const std::size_t num_tiles = problem.has_fp8_weights() ? kNumFp8Tiles : kProductTiles.size();
  ProductStrategy tile = 0;
  while (tile + 1 < num_tiles && per_expert >= kMinPairsPerExpert[tile + 1]) ++tile;
  return tile;
}

const char* limitation(ProductStrategy strategy, const FusedExpertsProblem& problem) {
  if (problem.has_fp8_weights() && strategy >= kNumFp8Tiles && !is_for_90a(strategy)) {
    return "multiplies no float8_e4m3fn numbers";
  }
  if (scaling_of(problem) == Scaling::kBlocks && is_for_90a(strategy) &&
      problem.activation == Activation::kSwigluoai) {
    return "multiplies no float8_e4m3fn numbers with scales of blocks whose rows of gate and up "
           "take "
           "turns";
  }
  if (problem.dtype.bits != 16) {
    return problem.has_fp8_weights() ? "writes float16 and bfloat16 alone"
                                     : "multiplies float16 and bfloat16 alone";
  }
  if (problem.num_experts > kAlignBlockSizeMaxExperts) return "aligns at most 2^30 experts";
  if (problem.top_k > kMaxChunkPairs) return "aligns at most 2^22 pairs of a token";
  const ProductAccesses accesses = accesses_of(problem);
  if (strategy != kElementsTile && accesses.has_elements()) {
    return "needs rows of whole words of 16 bytes, at multiples of 16 bytes";
  }
  if (is_for_90a(strategy) &&
      (accesses.gate_up != WeightAccess::kRows || accesses.down != WeightAccess::kRows)) {
    return "needs weights that are not transposed";
  }
  if (is_for_90a(strategy) &&
      std::max(problem.hidden_size, problem.intermediate_size) > kMaxDepthOf90a) {
    return "adds at most 2^30 terms";
  }
  if (strategy == kSwapAb && tokens_per_chunk(problem) * problem.top_k > kSwapAbMaxPairs) {
    return "sorts at most 2,048 pairs";
  }
  if (strategy == kSwapAb && problem.num_experts > kSwapAbMaxExperts) {
    return "sorts pairs of at most 512 experts";
  }
  return nullptr;
}

std::int64_t tokens_per_chunk(const FusedExpertsProblem& problem) {
  const std::int64_t tokens =
      std::min(kMaxChunkBytes / bytes_per_token(problem), kMaxChunkPairs / problem.top_k);
  return std::clamp<std::int64_t>(tokens, 1, std::max<std::int64_t>(1, problem.num_tokens));
}

FusedExpertsWorkspace::FusedExpertsWorkspace(const FusedExpertsProblem& problem,
                                             std::int64_t num_tokens, ProductStrategy strategy) {
  const std::int64_t pairs = num_tokens * problem.top_k;
  const int per_block = pairs_per_block(strategy);
  max_slots = pairs + std::min(pairs, problem.num_experts) * (per_block - 1);
  max_blocks = (max_slots + per_block - 1) / per_block;
  block_experts_length = max_blocks + (is_for_90a(strategy) ? kTileCounters : 0);
  if (strategy == kSwapAb && problem.has_fp8_weights()) {
    block_experts_length += max_blocks * scales_per_row(problem, problem.intermediate_size);
    if (scaling_of(problem) == Scaling::kRows) block_experts_length += 1 + pairs;
  }
  intermediate_rows = strategy == kWgmma ? max_blocks * per_block : pairs;
  std::size_t end = 0;
  const auto place = [&](std::int64_t elements, std::size_t element_bytes) {
    const std::size_t begin = end;
    const std::size_t bytes = static_cast<std::size_t>(elements) * element_bytes;
    end += (bytes + kWorkspaceAlign - 1) / kWorkspaceAlign * kWorkspaceAlign;
    return begin;
  };
  pair_experts = place(pairs, sizeof(std::int32_t));
  sorted_pairs = place(max_slots, sizeof(std::int32_t));
  block_experts = place(block_experts_length, sizeof(std::int32_t));
  num_slots = place(1, sizeof(std::int32_t));
  const bool is_fp8 = problem.has_fp8_weights();
  const bool is_quantised_at_once = strategy == kWgmma && scaling_of(problem) == Scaling::kBlocks;
  intermediate =
      place(is_quantised_at_once ? 0 : intermediate_rows * padded_row(problem.intermediate_size),
            is_fp8 ? sizeof(float) : sizeof(std::uint16_t));
  rows = place(pairs * padded_row(problem.hidden_size), sizeof(std::uint16_t));
  const auto place_quantised = [&](std::int64_t count, std::int64_t elements, std::size_t* values,
                                   std::size_t* scales) {
    *values = place(is_fp8 ? count * padded_fp8_row(elements) : 0, 1);
    *scales = place(is_fp8 ? count * scales_per_row(problem, elements) : 0, sizeof(float));
  };
  place_quantised(problem.is_x_fp8 ? 0 : num_tokens, problem.hidden_size, &fp8_x, &fp8_x_scales);
  place_quantised(intermediate_rows, problem.intermediate_size, &fp8_intermediate,
                  &fp8_intermediate_scales);
  alignment = end;
}

bool has_plain_ids(const FusedExpertsProblem& problem, ProductStrategy strategy) {
  // The mma kernels' quantisation of the intermediate reads the experts of pairs.
  const bool quantises = problem.has_fp8_weights() && !is_for_90a(strategy);
  return !problem.has_map() && !quantises &&
         (problem.num_tokens <= 1 || problem.topk_ids_stride == problem.top_k);
}

std::size_t swap_ab_tiling(const FusedExpertsProblem& problem) {
  const std::int64_t tokens = tokens_per_chunk(problem);
  const std::int64_t pairs = tokens * problem.top_k;
  if (pairs > kSwapAbPairs) {
    const bool has_many = mean_pairs_of_expert(problem, tokens) > kMaxPairsOfSwapAb;
    return has_many && !problem.has_fp8_weights() ? kSwapAbOf48PairsTiling : 0;
  }
  if (pairs > kSwapAbTilings[kSwapAbOf16PairsTiling].pairs) return 0;
  if (pairs > kSwapAbTilings[kSwapAbOf8PairsTiling].pairs) return kSwapAbOf16PairsTiling;
  if (problem.intermediate_size >= kMinIntermediateOfHalfTiles) return kSwapAbOf8PairsTiling;
  return problem.has_fp8_weights() ? kFewRowsFp8Tiling : kSwapAbShortTiling;
}

int max_blocks_evicted_first(const FusedExpertsProblem& problem, std::int64_t row_bytes,
                             std::int64_t tile_bytes) {
  const std::int64_t per_expert = mean_pairs_of_expert(problem, tokens_per_chunk(problem));
  const std::int64_t of_short_rows = problem.has_fp8_weights() ? kMaxPairsOfShortFp8Rows : 0;
  if (row_bytes <= kMaxBytesOfShortRow && per_expert > of_short_rows) return 0;
  return tile_bytes <= kMaxBytesOfSharedTile ? kSwapAbMaxPairs : 1;
}

bool prefetches_weights(const FusedExpertsProblem& problem) {
  return problem.num_tokens <= kMaxTokensOfPrefetch;
}

std::string describe_plan(ProductStrategy strategy, const FusedExpertsProblem& problem) {
  const std::int64_t tokens = tokens_per_chunk(problem);
  const std::int64_t chunks = (problem.num_tokens + tokens - 1) / tokens;
  const auto tiles = [](int pairs, int columns) {
    return std::to_string(pairs) + "x" + std::to_string(columns);
  };
  std::string shape;
  if (strategy < kProductTiles.size()) {
    shape = tiles(kProductTiles[strategy].pairs, kProductTiles[strategy].columns) + " tiles";
  } else if (strategy == kWgmma) {
    shape = tiles(kWgmmaPairs, kWgmmaColumns) + " tiles";
  } else {
    const SwapAbTiling& tiling = kSwapAbTilings[swap_ab_tiling(problem)];
    shape = tiles(tiling.pairs, tiling.down_rows) + " tiles";
    if (tiling.gate_up_rows != tiling.down_rows) {
      shape += ", of the gate-up product " + tiles(tiling.pairs, tiling.gate_up_rows);
    }
  }
  if (chunks <= 1) return shape;
  return shape + ", " + std::to_string(chunks) + " chunks of " + std::to_string(tokens) + " tokens";
}

}  // namespace tessera::cuda
