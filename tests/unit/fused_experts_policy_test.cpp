// The CUDA policy of fused_experts: a pure function of a problem, tested without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/fused_experts/policy.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;
using enum WeightAccess;

constexpr DLDataType kBfloat16{kDLBfloat, 16, 1};
constexpr DLDataType kFloat16{kDLFloat, 16, 1};
constexpr DLDataType kFloat32{kDLFloat, 32, 1};

struct Sizes {
  std::int64_t tokens = 64;
  std::int64_t slots = 8;
  std::int64_t experts = 16;
  std::int64_t hidden = 256;
  std::int64_t intermediate = 96;
};

/// An address that is `value` beyond a multiple of 4096.
const void* address(std::size_t value) {
  alignas(4096) static const std::byte memory[3 * 4096] = {};
  return memory + value;
}

/// Weights [experts, rows, columns] at an aligned address, without gaps.
ExpertWeights weights(std::int64_t rows, std::int64_t columns) {
  return {address(4096), rows * columns, columns, 1, nullptr, 0};
}

/// The same, stored as [experts, columns, rows].
ExpertWeights transposed(const ExpertWeights& weights) {
  const std::int64_t rows = weights.expert_stride / weights.row_stride;
  return {weights.data, weights.expert_stride, 1, rows, nullptr, 0};
}

/// A contiguous call on aligned arrays.
FusedExpertsProblem problem_of(const Sizes& sizes, Activation activation = Activation::kSilu) {
  FusedExpertsProblem problem{};
  problem.activation = activation;
  problem.num_tokens = sizes.tokens;
  problem.top_k = sizes.slots;
  problem.num_experts = problem.num_global_experts = sizes.experts;
  problem.hidden_size = sizes.hidden;
  problem.intermediate_size = sizes.intermediate;
  problem.dtype = kBfloat16;
  problem.x = address(256);
  problem.x_stride = sizes.hidden;
  problem.topk_ids_stride = sizes.slots;
  problem.w13 = weights(problem.num_gate_up_rows(), sizes.hidden);
  problem.w2 = weights(sizes.hidden, sizes.intermediate);
  return problem;
}

/// Pairs in a block of the tile that the policy picks.
int pairs_of_tile(const Sizes& sizes) {
  return kProductTiles[choose_strategy(problem_of(sizes), false)].pairs;
}

TEST(FusedExpertsPolicy, TilesGrowWithThePairsOfAnExpert) {
  // Decode: every pair has an expert to itself.
  EXPECT_EQ(pairs_of_tile({.tokens = 0}), 16);
  EXPECT_EQ(pairs_of_tile({.tokens = 1, .experts = 128}), 16);
  EXPECT_EQ(pairs_of_tile({.tokens = 16, .experts = 256}), 16);
  // Prefill.
  EXPECT_EQ(pairs_of_tile({.tokens = 4096, .experts = 128}), 128);
  EXPECT_EQ(pairs_of_tile({.tokens = 16384, .experts = 256}), 128);
  EXPECT_EQ(pairs_of_tile({.tokens = 4096, .slots = 1, .experts = 1}), 128);

  int last = 0;
  std::vector<int> seen;
  for (std::int64_t tokens = 1; tokens <= 1 << 16; tokens *= 2) {
    const int pairs = pairs_of_tile({.tokens = tokens, .experts = 64});
    EXPECT_GE(pairs, last) << tokens << " tokens";
    if (pairs != last) seen.push_back(pairs);
    last = pairs;
  }
  EXPECT_EQ(seen, (std::vector<int>{16, 32, 64, 128}));
}

TEST(FusedExpertsPolicy, TheTileDoesNotDependOnTheNumberOfSlotsAlone) {
  EXPECT_EQ(pairs_of_tile({.tokens = 512, .slots = 8}),
            pairs_of_tile({.tokens = 4096, .slots = 1}));
}

TEST(FusedExpertsPolicy, AccessesOfContiguousAndTransposedWeights) {
  FusedExpertsProblem problem = problem_of({});
  EXPECT_EQ(accesses_of(problem).gate_up, kRows);
  EXPECT_EQ(accesses_of(problem).down, kRows);
  EXPECT_FALSE(accesses_of(problem).has_elements());
  problem.w13 = transposed(problem.w13);
  EXPECT_EQ(accesses_of(problem).gate_up, kColumns);
  EXPECT_EQ(accesses_of(problem).down, kRows);
  problem.w2 = transposed(problem.w2);
  EXPECT_EQ(accesses_of(problem).down, kColumns);
  EXPECT_FALSE(accesses_of(problem).has_elements());
}

TEST(FusedExpertsPolicy, RowsApartByWholeWordsAreReadAsWords) {
  FusedExpertsProblem problem = problem_of({});
  problem.x_stride += 8;
  problem.w13.row_stride += 8;
  problem.w13.expert_stride = 192 * problem.w13.row_stride + 16;
  EXPECT_EQ(accesses_of(problem).gate_up, kRows);
  problem.w2 = transposed(problem.w2);
  problem.w2.column_stride += 8;
  problem.w2.expert_stride = 96 * problem.w2.column_stride;
  EXPECT_EQ(accesses_of(problem).down, kColumns);
}

TEST(FusedExpertsPolicy, WhatIsNotInWholeAlignedWordsIsReadByElements) {
  struct Change {
    const char* name;
    void (*make)(FusedExpertsProblem&);
    WeightAccess gate_up;
    WeightAccess down;
  };
  const Change changes[] = {
      {"x at 8 bytes", [](auto& p) { p.x = address(264); }, kElements, kRows},
      {"x at 2 bytes", [](auto& p) { p.x = address(258); }, kElements, kRows},
      {"x apart", [](auto& p) { p.x_stride += 4; }, kElements, kRows},
      {"w13 at 2 bytes", [](auto& p) { p.w13.data = address(4098); }, kElements, kRows},
      {"w13 rows", [](auto& p) { p.w13.row_stride += 4; }, kElements, kRows},
      {"w13 experts", [](auto& p) { p.w13.expert_stride += 4; }, kElements, kRows},
      {"w2 at 8 bytes", [](auto& p) { p.w2.data = address(4104); }, kRows, kElements},
      {"w2 rows", [](auto& p) { p.w2.row_stride += 1; }, kRows, kElements},
      {"w2 experts", [](auto& p) { p.w2.expert_stride += 7; }, kRows, kElements},
      {"w2 columns", [](auto& p) { (p.w2 = transposed(p.w2)).column_stride += 4; }, kRows,
       kElements},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.name);
    FusedExpertsProblem problem = problem_of({.tokens = 4096});
    change.make(problem);
    EXPECT_EQ(accesses_of(problem).gate_up, change.gate_up);
    EXPECT_EQ(accesses_of(problem).down, change.down);
    EXPECT_TRUE(accesses_of(problem).has_elements());
    EXPECT_EQ(choose_strategy(problem, false), kElementsTile);
  }
}

TEST(FusedExpertsPolicy, OddLengthsAreReadByElements) {
  // H is the sum of the first product and the outputs of the second, F the other way round.
  const auto accesses = [](const Sizes& sizes, bool is_transposed, Activation activation) {
    FusedExpertsProblem problem = problem_of(sizes, activation);
    if (is_transposed) {
      problem.w13 = transposed(problem.w13);
      problem.w2 = transposed(problem.w2);
    }
    return std::array{accesses_of(problem).gate_up, accesses_of(problem).down};
  };
  const Sizes odd_hidden{.hidden = 250};
  const Sizes odd_intermediate{.intermediate = 92};
  EXPECT_EQ(accesses(odd_hidden, false, Activation::kSilu), (std::array{kElements, kRows}));
  EXPECT_EQ(accesses(odd_hidden, true, Activation::kSilu), (std::array{kElements, kElements}));
  EXPECT_EQ(accesses(odd_intermediate, false, Activation::kSilu), (std::array{kRows, kElements}));
  // Gate and up begin at rows 0 and 92 of w13, and are one run of 184 only where they alternate.
  EXPECT_EQ(accesses(odd_intermediate, true, Activation::kSilu),
            (std::array{kElements, kElements}));
  EXPECT_EQ(accesses(odd_intermediate, true, Activation::kSwigluoai),
            (std::array{kColumns, kElements}));
}

TEST(FusedExpertsPolicy, LimitationsSayWhatATileCannotMultiply) {
  for (ProductStrategy tile = 0; tile < kNumProductStrategies; ++tile) {
    FusedExpertsProblem problem = problem_of({});
    EXPECT_EQ(limitation(tile, problem), nullptr);
    problem.dtype = kFloat16;
    EXPECT_EQ(limitation(tile, problem), nullptr);
    problem.dtype = kFloat32;
    EXPECT_STREQ(limitation(tile, problem), "multiplies float16 and bfloat16 alone");

    if (tile != kSwapAb) {  // whose limits are lower, and tested below
      EXPECT_EQ(limitation(tile, problem_of({.experts = 1 << 30})), nullptr);
      EXPECT_EQ(limitation(tile, problem_of({.slots = kMaxChunkPairs})), nullptr);
    }
    EXPECT_STREQ(limitation(tile, problem_of({.experts = (1 << 30) + 1})),
                 "aligns at most 2^30 experts");
    EXPECT_STREQ(limitation(tile, problem_of({.slots = kMaxChunkPairs + 1})),
                 "aligns at most 2^22 pairs of a token");

    problem = problem_of({.hidden = 251});
    if (tile == kElementsTile) {
      EXPECT_EQ(limitation(tile, problem), nullptr);
    } else {
      EXPECT_STREQ(limitation(tile, problem),
                   "needs rows of whole words of 16 bytes, at multiples of 16 bytes");
    }
  }
}

TEST(FusedExpertsPolicy, KernelsFor90aMultiplyWhereTheDeviceHasThem) {
  const auto choose = [](const Sizes& sizes, bool has_wgmma) {
    return choose_strategy(problem_of(sizes), has_wgmma);
  };
  EXPECT_EQ(choose({.tokens = 4096}, true), kWgmma);
  EXPECT_EQ(choose({.tokens = 4096}, false), 3U);
  EXPECT_EQ(choose({.tokens = 1, .experts = 128}, true), kSwapAb);
  EXPECT_EQ(choose({.tokens = 1, .experts = 128}, false), 0U);
  // Operands are exchanged up to 16 pairs per expert; there are eight slots per token.
  EXPECT_EQ(choose({.tokens = 135, .experts = 64}, true), kSwapAb);
  EXPECT_EQ(choose({.tokens = 136, .experts = 64}, true), kWgmma);
  // With more experts or pairs than that kernel sorts, wgmma follows sooner where sums are long.
  const std::int64_t many = kSwapAbMaxExperts + 1;
  for (const auto& [tokens, hidden, expected] :
       std::vector<std::tuple<std::int64_t, std::int64_t, ProductStrategy>>{
           {64, 2048, 0}, {1024, 2048, kWgmma}, {64, 4096, 0}, {256, 4096, kWgmma}}) {
    EXPECT_EQ(choose({.tokens = tokens, .experts = many, .hidden = hidden}, true), expected)
        << tokens << ' ' << hidden;
  }
  // With more tokens: exchanged operands, then wgmma.
  std::vector<ProductStrategy> seen;
  for (std::int64_t tokens = 1; tokens <= 1 << 16; ++tokens) {
    const ProductStrategy chosen = choose({.tokens = tokens, .experts = 64}, true);
    if (seen.empty() || seen.back() != chosen) seen.push_back(chosen);
  }
  EXPECT_EQ(seen, (std::vector<ProductStrategy>{kSwapAb, kWgmma}));
  // What they cannot read goes to the tiles.
  FusedExpertsProblem problem = problem_of({.tokens = 4096});
  problem.w2 = transposed(problem.w2);
  for (const ProductStrategy strategy : {kWgmma, kSwapAb}) {
    EXPECT_STREQ(limitation(strategy, problem), "needs weights that are not transposed");
  }
  EXPECT_EQ(choose_strategy(problem, true), 3U);
  EXPECT_EQ(choose({.tokens = 4096, .hidden = 251}, true), kElementsTile);
}

TEST(FusedExpertsPolicy, ExchangedOperandsHaveLimits) {
  const auto why = [](const Sizes& sizes) { return limitation(kSwapAb, problem_of(sizes)); };
  EXPECT_EQ(why({.tokens = kSwapAbMaxPairs / 8, .experts = kSwapAbMaxExperts}), nullptr);
  EXPECT_STREQ(why({.tokens = kSwapAbMaxPairs / 8 + 1}), "sorts at most 2,048 pairs");
  EXPECT_STREQ(why({.tokens = 1, .experts = kSwapAbMaxExperts + 1}),
               "sorts pairs of at most 512 experts");
}

TEST(FusedExpertsPolicy, TheChosenTileCanMultiplyTheProblem) {
  for (const std::int64_t tokens : {0, 1, 3, 64, 1000, 131072}) {
    for (const std::int64_t hidden : {1, 7, 8, 255, 256}) {
      for (const std::int64_t intermediate : {1, 8, 90}) {
        const FusedExpertsProblem problem =
            problem_of({.tokens = tokens, .hidden = hidden, .intermediate = intermediate});
        for (const bool has_wgmma : {false, true}) {
          EXPECT_EQ(limitation(choose_strategy(problem, has_wgmma), problem), nullptr);
        }
      }
    }
  }
}

std::int64_t chunk(const Sizes& sizes) { return tokens_per_chunk(problem_of(sizes)); }

TEST(FusedExpertsPolicy, CallsOfOrdinarySizeAreOneChunk) {
  EXPECT_EQ(chunk({.tokens = 0}), 1);
  EXPECT_EQ(chunk({.tokens = 1}), 1);
  EXPECT_EQ(chunk({.tokens = 4096, .hidden = 2048, .intermediate = 768}), 4096);
  EXPECT_EQ(describe_plan(3, problem_of({.tokens = 4096})), "128x128 tiles");
  EXPECT_EQ(describe_plan(0, problem_of({.tokens = 0})), "16x64 tiles");
}

TEST(FusedExpertsPolicy, ChunksAreAsLargeAsTheirBytesAllow) {
  const Sizes sizes{.tokens = 131072, .hidden = 7168, .intermediate = 2048};
  const std::int64_t tokens = chunk(sizes);
  const std::int64_t per_token = std::int64_t{8} * (2 * 2048 + 2 * 7168);
  EXPECT_LE(tokens * per_token, kMaxChunkBytes);
  EXPECT_GT((tokens + 1) * per_token, kMaxChunkBytes);
  const std::int64_t chunks = (131072 + tokens - 1) / tokens;
  EXPECT_EQ(describe_plan(3, problem_of(sizes)), "128x128 tiles, " + std::to_string(chunks) +
                                                     " chunks of " + std::to_string(tokens) +
                                                     " tokens");
  // Rows are padded to whole words.
  EXPECT_EQ(chunk({.tokens = 131072, .hidden = 7161, .intermediate = 2041}), tokens);
}

TEST(FusedExpertsPolicy, NumbersOfPairsFitInt32) {
  const std::int64_t many = std::int64_t{1} << 40;
  for (const std::int64_t slots : {1, 8, 100, 5000}) {
    const std::int64_t tokens =
        chunk({.tokens = many, .slots = slots, .hidden = 1, .intermediate = 1});
    EXPECT_LE(tokens * slots, std::int64_t{1} << 22);
    for (ProductStrategy strategy = 0; strategy < kNumProductStrategies; ++strategy) {
      const FusedExpertsWorkspace workspace(
          problem_of({.slots = slots, .experts = kAlignBlockSizeMaxExperts}), tokens, strategy);
      EXPECT_LE(workspace.max_slots, 0x7fffffff);
    }
  }
  // A token that needs more than a chunk may have is a chunk.
  EXPECT_EQ(chunk({.tokens = 9, .slots = 100, .hidden = 1 << 24}), 1);
  EXPECT_EQ(chunk({.tokens = 9, .slots = 1 << 23, .hidden = 1, .intermediate = 1}), 1);
}

TEST(FusedExpertsPolicy, PartsOfAWorkspaceDoNotOverlap) {
  for (const Sizes& sizes : {Sizes{}, Sizes{.tokens = 1},
                             Sizes{.tokens = 33, .slots = 3, .hidden = 7, .intermediate = 5},
                             Sizes{.tokens = 5000, .experts = 3}}) {
    for (ProductStrategy strategy = 0; strategy < kNumProductStrategies; ++strategy) {
      const FusedExpertsWorkspace workspace(problem_of(sizes), sizes.tokens, strategy);
      const std::int64_t pairs = sizes.tokens * sizes.slots;
      const auto bytes = [](std::int64_t elements, std::size_t size) {
        return static_cast<std::size_t>(elements) * size;
      };
      struct Part {
        std::size_t begin;
        std::size_t bytes;
      };
      const Part parts[] = {
          {workspace.pair_experts, bytes(pairs, 4)},
          {workspace.sorted_pairs, bytes(workspace.max_slots, 4)},
          {workspace.block_experts, bytes(workspace.block_experts_length, 4)},
          {workspace.num_slots, 4},
          {workspace.intermediate,
           bytes(workspace.intermediate_rows * padded_row(sizes.intermediate), 2)},
          {workspace.rows, bytes(pairs * padded_row(sizes.hidden), 2)},
          {workspace.alignment, 1000},
      };
      for (std::size_t i = 0; i + 1 < std::size(parts); ++i) {
        EXPECT_EQ(parts[i].begin % FusedExpertsWorkspace::kWorkspaceAlign, 0U);
        EXPECT_LE(parts[i].begin + parts[i].bytes, parts[i + 1].begin) << "part " << i;
      }
      // Also behind the first aligned address in it.
      EXPECT_GE(workspace.bytes(1000),
                workspace.alignment + 1000 + FusedExpertsWorkspace::kWorkspaceAlign - 1);
    }
  }
}

TEST(FusedExpertsPolicy, SlotsSufficeForAnyRouting) {
  for (ProductStrategy strategy = 0; strategy < kNumProductStrategies; ++strategy) {
    const int pairs = pairs_per_block(strategy);
    // 24 pairs of 3 experts: each expert's last block may hold one pair.
    const FusedExpertsWorkspace few(problem_of({.experts = 3}), 3, strategy);
    EXPECT_GE(few.max_slots, 24 + 3 * (pairs - 1));
    EXPECT_GE(few.max_blocks * pairs, few.max_slots);
    // 24 pairs of 1,000 experts: a block for each pair, and not more memory for more experts.
    const FusedExpertsWorkspace many(problem_of({.experts = 1000}), 3, strategy);
    EXPECT_EQ(many.max_slots, 24 * pairs);
    EXPECT_EQ(many.max_blocks, 24);
    // By slot, a row for each; else a row for each pair.
    EXPECT_EQ(many.intermediate_rows, strategy == kWgmma ? 24 * pairs : 24);
    EXPECT_EQ(many.block_experts_length, 24 + (is_for_90a(strategy) ? 2 : 0));
  }
}

TEST(FusedExpertsPolicy, AWorkspaceIsAsLargeAsItsPageSays) {
  const Sizes sizes{.tokens = 8192, .experts = 256, .hidden = 7168, .intermediate = 2048};
  const FusedExpertsWorkspace workspace(problem_of(sizes), 4096, 3);
  const std::size_t pairs = std::size_t{4096} * 8;
  const std::size_t of_pairs = pairs * (2 * 2048 + 2 * 7168);
  const std::size_t of_slots = 4 * (pairs + std::size_t{256} * 127) + 4 * (pairs / 128 + 256);
  EXPECT_GE(workspace.alignment, of_pairs + of_slots);
  const std::size_t most = of_pairs + of_slots + 4 * pairs + std::size_t{6} * 256;
  EXPECT_LE(workspace.alignment, most);

  const FusedExpertsWorkspace by_slot(problem_of(sizes), 4096, kWgmma);
  const auto padding = static_cast<std::size_t>(pairs_per_block(kWgmma) - 1);
  EXPECT_GT(by_slot.alignment, workspace.alignment);
  EXPECT_LE(by_slot.alignment, most + padding * (256 + 1) * (2 * 2048 + 4));
}

TEST(FusedExpertsPolicy, AWorkspaceOnHopperIsSmall) {
  // Qwen3-30B-A3B.
  const Sizes sizes{.tokens = 16384, .experts = 128, .hidden = 2048, .intermediate = 768};
  const FusedExpertsProblem problem = problem_of(sizes);
  EXPECT_EQ(tokens_per_chunk(problem), sizes.tokens);
  const FusedExpertsWorkspace workspace(problem, sizes.tokens, choose_strategy(problem, true));
  EXPECT_LE(workspace.alignment, 770'000'000U);
}

TEST(FusedExpertsPolicy, IdsAreUsedAsTheyAreWithoutAMapAndGaps) {
  FusedExpertsProblem problem = problem_of({});
  EXPECT_TRUE(has_plain_ids(problem));
  problem.topk_ids_stride += 1;
  EXPECT_FALSE(has_plain_ids(problem));
  problem.num_tokens = 1;
  EXPECT_TRUE(has_plain_ids(problem));
  problem.expert_map = static_cast<const std::int32_t*>(address(4096));
  EXPECT_FALSE(has_plain_ids(problem));
}

}  // namespace
}  // namespace tessera::cuda
