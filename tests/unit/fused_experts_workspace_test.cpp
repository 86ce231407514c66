// The chunks and the workspace of fused_experts on CUDA, which a GPU is not needed for.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

#include "cuda/fused_experts/policy.hpp"
#include "fused_experts_problem_of.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {
namespace {

using core::FusedExpertsProblem;

std::int64_t chunk(const Sizes& sizes) { return tokens_per_chunk(problem_of(sizes)); }

TEST(FusedExpertsWorkspaces, CallsOfOrdinarySizeAreOneChunk) {
  EXPECT_EQ(chunk({.tokens = 0}), 1);
  EXPECT_EQ(chunk({.tokens = 1}), 1);
  EXPECT_EQ(chunk({.tokens = 4096, .hidden = 2048, .intermediate = 768}), 4096);
  EXPECT_EQ(describe_plan(3, problem_of({.tokens = 4096})), "128x128 tiles");
  EXPECT_EQ(describe_plan(0, problem_of({.tokens = 0})), "16x64 tiles");
}

TEST(FusedExpertsWorkspaces, ChunksAreAsLargeAsTheirBytesAllow) {
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

TEST(FusedExpertsWorkspaces, NumbersOfPairsFitInt32) {
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

TEST(FusedExpertsWorkspaces, PartsForFp8HaveRoomForAllRowsAndScales) {
  for (const auto kind : {core::WeightScales::kPerRow, core::WeightScales::kPerBlock}) {
    for (const Sizes& sizes :
         {Sizes{}, Sizes{.tokens = 1, .hidden = 129},
          Sizes{.tokens = 33, .slots = 3, .hidden = 300, .intermediate = 257}}) {
      const std::int64_t pairs = sizes.tokens * sizes.slots;
      const FusedExpertsWorkspace workspace(fp8_problem_of(sizes, kind), sizes.tokens, 2);
      const auto scales = [&](std::int64_t elements) {
        return kind == core::WeightScales::kPerBlock ? (elements + 127) / 128 : 1;
      };
      const auto room = [](std::size_t begin, std::size_t end, std::int64_t bytes) {
        return end >= begin + static_cast<std::size_t>(bytes);
      };
      EXPECT_TRUE(room(workspace.intermediate, workspace.rows, 4 * pairs * sizes.intermediate));
      EXPECT_TRUE(room(workspace.rows, workspace.fp8_x, 2 * pairs * sizes.hidden));
      // Rows begin at whole words.
      const std::int64_t row = (sizes.hidden + 15) / 16 * 16;
      EXPECT_TRUE(room(workspace.fp8_x, workspace.fp8_x_scales, sizes.tokens * row));
      EXPECT_TRUE(room(workspace.fp8_x_scales, workspace.fp8_intermediate,
                       4 * sizes.tokens * scales(sizes.hidden)));
      const std::int64_t intermediate_row = (sizes.intermediate + 15) / 16 * 16;
      EXPECT_TRUE(room(workspace.fp8_intermediate, workspace.fp8_intermediate_scales,
                       pairs * intermediate_row));
      EXPECT_TRUE(room(workspace.fp8_intermediate_scales, workspace.alignment,
                       4 * pairs * scales(sizes.intermediate)));
    }
  }
  // Wgmma writes the intermediate by slot, in float8_e4m3fn at once.
  const Sizes few{.tokens = 33, .slots = 3, .hidden = 256, .intermediate = 208};
  const FusedExpertsWorkspace at_once(fp8_problem_of(few), few.tokens, kWgmma);
  EXPECT_EQ(at_once.intermediate, at_once.rows);
  EXPECT_GE(at_once.intermediate_rows, at_once.max_slots);
  EXPECT_GE(at_once.fp8_intermediate_scales,
            at_once.fp8_intermediate + static_cast<std::size_t>(at_once.intermediate_rows * 208));
  EXPECT_GE(at_once.alignment, at_once.fp8_intermediate_scales +
                                   static_cast<std::size_t>(at_once.intermediate_rows * 2 * 4));
  // With exchanged operands there is a counter for each group of a block.
  const FusedExpertsWorkspace counted(fp8_problem_of(few), few.tokens, kSwapAb);
  EXPECT_EQ(counted.block_experts_length, counted.max_blocks * (1 + 2) + 2);
  EXPECT_EQ(FusedExpertsWorkspace(problem_of(few), few.tokens, kSwapAb).block_experts_length,
            counted.max_blocks + 2);
  // With scales of rows a counter for each block, one of parts, and the magnitude of each row.
  const FusedExpertsProblem by_rows = fp8_problem_of(few, core::WeightScales::kPerRow);
  EXPECT_EQ(FusedExpertsWorkspace(by_rows, few.tokens, kSwapAb).block_experts_length,
            counted.max_blocks * 2 + 2 + 1 + 33 * 3);

  // What pairs take more than in bfloat16 counts for chunks.
  const Sizes sizes{.tokens = 131072, .hidden = 7168, .intermediate = 2048};
  const FusedExpertsProblem problem = fp8_problem_of(sizes);
  const std::int64_t tokens = tokens_per_chunk(problem);
  const std::int64_t per_token =
      8 * (2 * 7168 + 4 * 2048 + 2048 + 4 * 16) + 7168 + 4 * 56;  // slots, and the token's x
  EXPECT_EQ(tokens, kMaxChunkBytes / per_token);
  FusedExpertsProblem in_fp8 = problem;
  in_fp8.is_x_fp8 = true;
  EXPECT_EQ(tokens_per_chunk(in_fp8), kMaxChunkBytes / (per_token - 7168 - 4 * 56));
  EXPECT_LT(FusedExpertsWorkspace(in_fp8, 100, 2).alignment,
            FusedExpertsWorkspace(problem, 100, 2).alignment - 100 * 7168);
  EXPECT_EQ(scales_per_row(problem, 7168), 56);
  EXPECT_EQ(scales_per_row(fp8_problem_of(sizes, core::WeightScales::kPerRow), 7168), 1);
  EXPECT_LE(FusedExpertsWorkspace(problem, tokens, 2).alignment,
            static_cast<std::size_t>(kMaxChunkBytes) + (std::size_t{16} << 20));
}

TEST(FusedExpertsWorkspaces, PartsOfAWorkspaceDoNotOverlap) {
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

TEST(FusedExpertsWorkspaces, SlotsSufficeForAnyRouting) {
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

TEST(FusedExpertsWorkspaces, AWorkspaceIsAsLargeAsItsPageSays) {
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

TEST(FusedExpertsWorkspaces, AWorkspaceOnHopperIsSmall) {
  // Qwen3-30B-A3B.
  const Sizes sizes{.tokens = 16384, .experts = 128, .hidden = 2048, .intermediate = 768};
  const FusedExpertsProblem problem = problem_of(sizes);
  EXPECT_EQ(tokens_per_chunk(problem), sizes.tokens);
  const FusedExpertsWorkspace workspace(problem, sizes.tokens, choose_strategy(problem, true));
  EXPECT_LE(workspace.alignment, 770'000'000U);
}

TEST(FusedExpertsWorkspaces, IdsAreUsedAsTheyAreWithoutAMapAndGaps) {
  FusedExpertsProblem problem = problem_of({});
  EXPECT_TRUE(has_plain_ids(problem, 0));
  problem.topk_ids_stride += 1;
  EXPECT_FALSE(has_plain_ids(problem, 0));
  problem.num_tokens = 1;
  EXPECT_TRUE(has_plain_ids(problem, 0));
  FusedExpertsProblem of_no_entries = problem;  // by which no id counts
  of_no_entries.num_global_experts = 0;
  EXPECT_FALSE(has_plain_ids(of_no_entries, 0));
  problem.expert_map = static_cast<const std::int32_t*>(address(4096));
  EXPECT_FALSE(has_plain_ids(problem, 0));
  // The quantisation of the intermediate by a kernel of its own reads the experts of pairs.
  EXPECT_FALSE(has_plain_ids(fp8_problem_of({}), 0));
  EXPECT_TRUE(has_plain_ids(fp8_problem_of({}), kWgmma));
  EXPECT_TRUE(has_plain_ids(fp8_problem_of({}), kSwapAb));
}

}  // namespace
}  // namespace tessera::cuda
