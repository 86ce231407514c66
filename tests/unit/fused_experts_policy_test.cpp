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
#include "fused_experts_problem_of.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;
using enum WeightAccess;

constexpr DLDataType kFloat16{kDLFloat, 16, 1};
constexpr DLDataType kFloat32{kDLFloat, 32, 1};

/// The same, stored as [experts, columns, rows].
ExpertWeights transposed(const ExpertWeights& weights) {
  const std::int64_t rows = weights.expert_stride / weights.row_stride;
  return {weights.data, weights.expert_stride, 1, rows, nullptr, 0, weights.scales};
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
    problem = fp8_problem_of({});
    if (tile < kNumFp8Tiles || is_for_90a(tile)) {
      EXPECT_EQ(limitation(tile, problem), nullptr);
      problem.dtype = kFloat32;
      EXPECT_STREQ(limitation(tile, problem), "writes float16 and bfloat16 alone");
    } else {
      EXPECT_STREQ(limitation(tile, problem), "multiplies no float8_e4m3fn numbers");
    }

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

TEST(FusedExpertsPolicy, WordsOfFp8HaveSixteenElements) {
  const auto accesses = [](const FusedExpertsProblem& problem) {
    const ProductAccesses found = accesses_of(problem);
    return std::array{found.gate_up, found.down};
  };
  const auto changed = [&](void (*change)(FusedExpertsProblem&)) {
    FusedExpertsProblem problem = fp8_problem_of({});
    change(problem);
    return accesses(problem);
  };
  constexpr std::array kBothByRows{kRows, kRows};
  constexpr std::array kFirstByElements{kElements, kRows};
  constexpr std::array kSecondByElements{kRows, kElements};
  EXPECT_EQ(accesses(fp8_problem_of({})), kBothByRows);
  // A length alone: rows lie apart by whole words.
  EXPECT_EQ(changed([](auto& p) { p.hidden_size = 248; }), kFirstByElements);
  EXPECT_EQ(changed([](auto& p) { p.intermediate_size = 88; }), kSecondByElements);
  EXPECT_EQ(changed([](auto& p) { p.w13.row_stride += 8; }), kFirstByElements);
  EXPECT_EQ(changed([](auto& p) { p.w13.expert_stride += 8; }), kFirstByElements);
  EXPECT_EQ(changed([](auto& p) { p.w2.data = address(4104); }), kSecondByElements);
  EXPECT_EQ(changed([](auto& p) { p.w13 = transposed(p.w13); }), kFirstByElements);
  EXPECT_EQ(changed([](auto& p) { p.w2 = transposed(p.w2); }), kSecondByElements);
  // One row of weights alone, whose stride along it is 16.
  EXPECT_EQ(changed([](auto& p) { p.w2.column_stride = 16; }), kSecondByElements);
  // Rows of x that the call quantises lie in the workspace.
  EXPECT_EQ(changed([](auto& p) { p.x = address(258); }), kBothByRows);
  EXPECT_EQ(changed([](auto& p) { p.x_stride += 1; }), kBothByRows);
  EXPECT_EQ(changed([](auto& p) { p.is_x_fp8 = true; }), kBothByRows);
  EXPECT_EQ(changed([](auto& p) { p.is_x_fp8 = (p.x = address(264)) != nullptr; }),
            kFirstByElements);
  EXPECT_EQ(changed([](auto& p) { p.is_x_fp8 = (p.x_stride += 8) > 0; }), kFirstByElements);
}

TEST(FusedExpertsPolicy, TheChosenKernelCanMultiplyFp8) {
  using Strategies = std::vector<ProductStrategy>;
  const auto chosen = [](bool has_wgmma, core::WeightScales kind, Activation activation) {
    Strategies seen;
    for (std::int64_t tokens = 1; tokens <= 1 << 16; tokens *= 2) {
      FusedExpertsProblem problem = fp8_problem_of({.tokens = tokens, .experts = 64}, kind);
      problem.activation = activation;
      const ProductStrategy found = choose_strategy(problem, has_wgmma);
      EXPECT_EQ(limitation(found, problem), nullptr);
      if (seen.empty() || seen.back() != found) seen.push_back(found);
    }
    return seen;
  };
  constexpr auto kBlocks = core::WeightScales::kPerBlock;
  constexpr auto kRows = core::WeightScales::kPerRow;
  const Strategies by_mma{0, 1, 2};
  // The sums of kernels for 9.0a have fewer bits, so they take calls of all sizes.
  const Strategies by_wgmma{kSwapAb, kWgmma};
  for (const auto kind : {kBlocks, kRows, core::WeightScales::kPerExpert}) {
    EXPECT_EQ(chosen(true, kind, Activation::kSilu), by_wgmma);
    EXPECT_EQ(chosen(false, kind, Activation::kSilu), by_mma);
  }
  EXPECT_EQ(chosen(true, kBlocks, Activation::kSwigluoai), by_mma);
  EXPECT_EQ(chosen(true, kRows, Activation::kSwigluoai), by_wgmma);
  for (const bool has_wgmma : {false, true}) {
    EXPECT_EQ(choose_strategy(fp8_problem_of({.tokens = 4096, .hidden = 248}), has_wgmma),
              kElementsTile);
  }
  // More experts than it sorts pairs of.
  const Sizes sizes{.tokens = 1, .experts = kSwapAbMaxExperts + 1};
  EXPECT_EQ(choose_strategy(fp8_problem_of(sizes), true), kWgmma);
}

TEST(FusedExpertsPolicy, KernelsFor90aMultiplySomeFp8Alone) {
  for (const ProductStrategy strategy : {kWgmma, kSwapAb}) {
    FusedExpertsProblem problem = fp8_problem_of({});
    problem.activation = Activation::kSwigluoai;
    EXPECT_STREQ(
        limitation(strategy, problem),
        "multiplies no float8_e4m3fn numbers with scales of blocks whose rows of gate and up take "
        "turns");
    problem.activation = Activation::kSwigluoaiUninterleave;
    EXPECT_EQ(limitation(strategy, problem), nullptr);
  }
}

TEST(FusedExpertsPolicy, KernelsFor90aHaveALimitOfTerms) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  for (const ProductStrategy strategy : {kWgmma, kSwapAb}) {
    EXPECT_EQ(limitation(strategy, problem_of({.tokens = 1, .hidden = kMost})), nullptr);
    EXPECT_EQ(limitation(strategy, problem_of({.tokens = 1, .intermediate = kMost})), nullptr);
    for (const Sizes& sizes :
         {Sizes{.tokens = 1, .hidden = kMost + 8}, Sizes{.tokens = 1, .intermediate = kMost + 8}}) {
      EXPECT_STREQ(limitation(strategy, problem_of(sizes)), "adds at most 2^30 terms");
      EXPECT_LT(choose_strategy(problem_of(sizes), true), kWgmma);
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
  // Operands are exchanged up to 32 pairs per expert, in fp8 up to 16; there are eight slots per
  // token.
  EXPECT_EQ(choose({.tokens = 131, .experts = 32}, true), kSwapAb);
  EXPECT_EQ(choose({.tokens = 132, .experts = 32}, true), kWgmma);
  EXPECT_EQ(choose_strategy(fp8_problem_of({.tokens = 135, .experts = 64}), true), kSwapAb);
  EXPECT_EQ(choose_strategy(fp8_problem_of({.tokens = 136, .experts = 64}), true), kWgmma);
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

TEST(FusedExpertsPolicy, WeightsThatAreReadOnceLeaveTheCacheFirst) {
  constexpr std::int64_t kHalfMiB = std::int64_t{512} << 10;
  const auto sizes_of = [](std::int64_t pairs) {
    return Sizes{.tokens = pairs, .experts = 8};  // of which each token has 8
  };
  for (const FusedExpertsProblem& problem :
       {problem_of(sizes_of(32)), fp8_problem_of(sizes_of(32))}) {
    EXPECT_EQ(max_blocks_evicted_first(problem, 4096, kHalfMiB), kSwapAbMaxPairs);
    EXPECT_EQ(max_blocks_evicted_first(problem, 4096, kHalfMiB + 1), 1);
    EXPECT_EQ(max_blocks_evicted_first(problem, 513, kHalfMiB), kSwapAbMaxPairs);
    EXPECT_EQ(max_blocks_evicted_first(problem, 512, kHalfMiB), 0);
  }
  // Short rows only in fp8, where experts have few pairs.
  const auto of_short_rows = [&](const FusedExpertsProblem& problem) {
    return max_blocks_evicted_first(problem, 512, kHalfMiB);
  };
  EXPECT_EQ(of_short_rows(problem_of(sizes_of(1))), 0);
  EXPECT_EQ(of_short_rows(fp8_problem_of(sizes_of(2))), kSwapAbMaxPairs);
  EXPECT_EQ(of_short_rows(fp8_problem_of(sizes_of(3))), 0);
}

TEST(FusedExpertsPolicy, FewTokensFetchTheFirstWeightsAhead) {
  EXPECT_TRUE(prefetches_weights(fp8_problem_of({.tokens = 16})));
  EXPECT_FALSE(prefetches_weights(fp8_problem_of({.tokens = 17})));
}

TEST(FusedExpertsPolicy, ExchangedOperandsHaveSmallerTilesForFewPairs) {
  const auto tiles = [](const Sizes& sizes) {
    const SwapAbTiling& found = kSwapAbTilings[swap_ab_tiling(problem_of(sizes))];
    return std::vector<int>{found.pairs, found.gate_up_rows, found.down_rows};
  };
  using Tiles = std::vector<int>;
  // A token of 8 experts has 8 pairs.
  EXPECT_EQ(tiles({.tokens = 1, .experts = 256, .intermediate = 511}), (Tiles{8, 32, 128}));
  EXPECT_EQ(tiles({.tokens = 1, .experts = 256, .intermediate = 512}), (Tiles{8, 64, 64}));
  EXPECT_EQ(tiles({.tokens = 2, .experts = 256, .intermediate = 256}), (Tiles{16, 64, 128}));
  EXPECT_EQ(tiles({.tokens = 2, .experts = 256, .intermediate = 4096}), (Tiles{16, 64, 128}));
  EXPECT_EQ(tiles({.tokens = 3, .experts = 256, .intermediate = 256}), (Tiles{32, 128, 128}));
  // With more than 16 pairs per expert blocks are larger, and tiles wider.
  EXPECT_EQ(tiles({.tokens = 135, .experts = 64}), (Tiles{32, 128, 128}));
  EXPECT_EQ(tiles({.tokens = 136, .experts = 64}), (Tiles{48, 256, 256}));
  EXPECT_EQ(swap_ab_tiling(fp8_problem_of({.tokens = 136, .experts = 64})), 0U);
  // In float8_e4m3fn there are none of 32 rows.
  for (const std::int64_t tokens : {1, 2, 3}) {
    for (const std::int64_t intermediate : {256, 512}) {
      const Sizes sizes{.tokens = tokens, .experts = 256, .intermediate = intermediate};
      const Tiles found = tiles(sizes);
      const SwapAbTiling& fp8 = kSwapAbTilings[swap_ab_tiling(fp8_problem_of(sizes))];
      EXPECT_LT(swap_ab_tiling(fp8_problem_of(sizes)), num_swap_ab_tilings(Scaling::kBlocks));
      EXPECT_EQ((Tiles{fp8.pairs, fp8.gate_up_rows, fp8.down_rows}),
                (found == Tiles{8, 32, 128} ? Tiles{16, 64, 128} : found));
    }
  }
  EXPECT_EQ(describe_plan(kSwapAb, problem_of({.tokens = 1, .intermediate = 512})), "8x64 tiles");
  EXPECT_EQ(describe_plan(kSwapAb, problem_of({.tokens = 2, .intermediate = 512})),
            "16x128 tiles, of the gate-up product 16x64");
  EXPECT_EQ(describe_plan(kSwapAb, problem_of({.tokens = 32, .intermediate = 512})),
            "32x128 tiles");
  EXPECT_EQ(describe_plan(kSwapAb, problem_of({.tokens = 136, .experts = 64})), "48x256 tiles");
}

}  // namespace
}  // namespace tessera::cuda
