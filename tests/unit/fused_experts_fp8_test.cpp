// What is special to fused_experts with weights in float8_e4m3fn: values worked out by hand, NaNs,
// and the same bits in every call.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "case_arguments.hpp"
#include "fused_experts_fp8_layer.hpp"
#include "tessera/fused_experts.hpp"
#include "tessera/quantize_fp8.hpp"

namespace tessera::test {
namespace {

enum class WeightsOf { kBlocks, kRows };

float& scale_at(const TensorView& scales, std::int64_t index) {
  return static_cast<float*>(scales.data)[index];
}

TEST(FusedExpertsFp8, ComputesValuesWrittenByHand) {
  // relu2, two experts with a scale each, and static scales: q = x / 2 = 8, X = 2.
  Fp8Layer layer(2, 1, 2, 1, Activation::kRelu2NoMul);
  layer.args.w13_scale = layer.scales({2}, 0.5F);
  layer.args.w2_scale = layer.scales({2}, 3);
  scale_at(layer.args.w13_scale, 1) = 0.25F;
  layer.args.x_scale = layer.scales({1}, 2);
  layer.args.intermediate_scale = layer.scales({1}, 4);
  layer.x = {16, 16};
  layer.ids = {0, 1};
  layer.w13 = {kOne, kTwo};
  layer.w2 = {kThree, kOne};
  ASSERT_TRUE(layer.run().ok());
  // g = 0.5 * 2 * 8 = 8 and 0.25 * 2 * 2 * 8 = 8; a = 64, and b = 16 with the scale 4.
  EXPECT_EQ(layer.output, (std::vector<float>{3 * 3 * 64.0F, 3 * 1 * 64.0F}));

  // 2,000 saturates at 448 times 2, and a at 448 times 4.
  layer.x = {2000, -2000};
  ASSERT_TRUE(layer.run().ok());
  EXPECT_EQ(layer.output, (std::vector<float>{9 * 448 * 4, 0}));
}

TEST(FusedExpertsFp8, QuantisesEachGroupWithAScaleOfItsOwn) {
  // The first 128 hidden states are 448 and 1; 1 quantises to 1. In one group with 4,480,000 it is
  // 0.
  Fp8Layer layer(1, 256, 1, 1, Activation::kRelu2NoMul);
  layer.args.w13_scale = layer.scales({1, 1, 2});
  layer.args.w2_scale = layer.scales({1, 2, 1});
  std::fill(layer.x.begin(), layer.x.end(), 0.0F);
  layer.x[0] = 448;
  layer.x[1] = 1;
  layer.x[128] = 4480000;
  layer.w13.assign(256, 0);
  layer.w13[1] = kOne;
  ASSERT_TRUE(layer.run().ok());
  EXPECT_EQ(layer.output[0], 1);

  layer.args.w13_scale = layer.scales({1, 1, 1});
  layer.args.w2_scale = layer.scales({1, 256, 1});
  ASSERT_TRUE(layer.run().ok());
  EXPECT_EQ(layer.output[0], 0);
}

TEST(FusedExpertsFp8, BlocksOfUpRowsBeginAnew) {
  // F = 130: block rows of gate, gate, up, up. Gate is 1, and so is up but for its scale.
  constexpr std::int64_t kSize = 130;
  Fp8Layer layer(1, 1, 1, kSize, Activation::kSwigluoaiUninterleave);
  layer.args.swiglu_alpha = 0;  // gate / 2
  layer.args.swiglu_beta = 0;
  layer.args.swiglu_limit = INFINITY;
  layer.args.w13_scale = layer.scales({1, 4, 1});
  layer.args.w2_scale = layer.scales({1, 1, 2});
  layer.use_fp8_x();
  layer.args.x_scale = layer.scales({1, 1});
  scale_at(layer.args.w13_scale, 2) = 2;   // up rows 0 to 127
  scale_at(layer.args.w13_scale, 3) = 16;  // up rows 128 and 129
  ASSERT_TRUE(layer.run().ok());
  // 1 / 448 * 448 is 1 in float32, and so for powers of two.
  EXPECT_EQ(layer.output[0], 128 * 1 + 2 * 8);
}

TEST(FusedExpertsFp8, MayRoundScalesToPowersOfTwo) {
  Fp8Layer layer(1, 1, 1, 1, Activation::kRelu2NoMul);
  layer.args.w13_scale = layer.scales({1});
  layer.args.w2_scale = layer.scales({1});
  layer.x = {0.95F};  // 448 * 0.00212; with the scale 2^-8, 243.2 becomes 240
  layer.args.use_ue8m0 = true;
  ASSERT_TRUE(layer.run().ok());
  // (240 / 256)^2 = 0.87890625, which is 225 / 256 and becomes 224 / 256.
  EXPECT_EQ(layer.output[0], 0.875F);
}

TEST(FusedExpertsFp8, TakesXInFp8WithAnyTypeOfOutput) {
  Fp8Layer layer(1, 2, 1, 1, Activation::kRelu2NoMul);
  layer.use_fp8_x();
  layer.x_fp8 = {kOne, kThree};
  layer.args.w13_scale = layer.scales({1});
  layer.args.w2_scale = layer.scales({1});
  layer.args.x_scale = layer.scales({1}, 0.5F);
  layer.args.intermediate_scale = layer.scales({1});
  ASSERT_TRUE(layer.run().ok());
  EXPECT_EQ(layer.output, (std::vector<float>{4, 4}));  // (0.5 + 1.5)^2
  for (const DLDataType dtype : {kBf16, DLDataType{kDLFloat, 16, 1}}) {
    layer.args.output = TensorView::of(layer.bits16.data(), dtype, {1, 2});
    ASSERT_TRUE(layer.run().ok());
    EXPECT_EQ(layer.bits16[1], dtype.code == kDLBfloat ? 0x4080 : 0x4400);
  }
}

TEST(FusedExpertsFp8, NansStayAndInfinitiesSaturate) {
  Fp8Layer layer(2, 2, 1, 1, Activation::kRelu2NoMul);
  layer.args.w13_scale = layer.scales({1});
  layer.args.w2_scale = layer.scales({
      1,
  });
  layer.x = {INFINITY, 4.48F, NAN, 1};
  ASSERT_TRUE(layer.run().ok());
  // Infinity becomes 448 times the scale of 4.48.
  EXPECT_NEAR(layer.output[0], 8.96 * 8.96, 1e-4);
  EXPECT_TRUE(std::isnan(layer.output[2]) && std::isnan(layer.output[3]));
  layer.x = {1, 1, 1, 1};
  layer.w2 = {0x7f, kOne};  // a NaN in row 0
  ASSERT_TRUE(layer.run().ok());
  EXPECT_TRUE(std::isnan(layer.output[0]) && std::isnan(layer.output[2]));
  EXPECT_FALSE(std::isnan(layer.output[1]) || std::isnan(layer.output[3]));
}

/// The bytes of the output of random arguments, 40 tokens of 3 experts, from `first` on.
std::vector<float> run_random(WeightsOf weights, const char* implementation, int num_threads,
                              std::int64_t first, std::int64_t num_tokens) {
  constexpr std::int64_t kHidden = 300;
  constexpr std::int64_t kSize = 200;
  constexpr std::int64_t kTokens = 40;
  Fp8Layer layer(kTokens, kHidden, 3, kSize);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& x : layer.x) x = normal(random);
  const auto fill = [&](std::vector<std::uint8_t>& values) {
    for (std::uint8_t& value : values) {
      do value = static_cast<std::uint8_t>(random());
      while ((value & 0x7f) == 0x7f);
    }
  };
  fill(layer.w13);
  fill(layer.w2);
  for (std::int32_t& id : layer.ids) id = static_cast<std::int32_t>(random() % 3);
  const bool in_blocks = weights == WeightsOf::kBlocks;
  layer.args.w13_scale = in_blocks ? layer.scales({3, 4, 3}) : layer.scales({3, 2 * kSize, 1});
  layer.args.w2_scale = in_blocks ? layer.scales({3, 3, 2}) : layer.scales({3, kHidden, 1});
  for (std::vector<float>& scales : layer.memory) {
    for (float& scale : scales) scale = 0.001F * (1 + std::abs(normal(random)));
  }
  layer.args.x = TensorView::of(layer.x.data() + first * kHidden, kFp32, {num_tokens, kHidden});
  layer.args.topk_ids = TensorView::of(layer.ids.data() + first, kInt32, {num_tokens, 1});
  layer.args.topk_weights = TensorView::of(layer.weights.data() + first, kFp32, {num_tokens, 1});
  layer.args.output =
      TensorView::of(layer.output.data() + first * kHidden, kFp32, {num_tokens, kHidden});
  Context context;
  context.implementation = implementation;
  context.num_threads = num_threads;
  if (layer.run(context).code() == StatusCode::kUnsupported) return {};
  const auto begin = layer.output.begin() + first * kHidden;
  return {begin, begin + num_tokens * kHidden};
}

TEST(FusedExpertsFp8, BitsDependNeitherOnThreadsNorOnOtherTokens) {
  for (const WeightsOf weights : {WeightsOf::kBlocks, WeightsOf::kRows}) {
    for (const char* name : {"cpu/avx512", "cpu/avx2", "cpu/portable", "cpu/reference"}) {
      const std::vector<float> all = run_random(weights, name, 1, 0, 40);
      if (all.empty()) continue;
      EXPECT_EQ(run_random(weights, name, 2, 0, 40), all) << name;
      for (const std::int64_t first : {0, 17, 39}) {
        for (const std::int64_t count : {1, 3, 20}) {
          if (first + count > 40) continue;
          const std::vector<float> some = run_random(weights, name, 1, first, count);
          EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + first * 300))
              << name << " " << first << " " << count;
        }
      }
    }
  }
}

TEST(FusedExpertsFp8, FastImplementationsKeepNansOfWeights) {
  constexpr std::int64_t kHidden = 200;
  constexpr std::int64_t kSize = 140;
  for (const char* name : {"cpu/avx512", "cpu/avx2", "cpu/portable", "cpu/reference"}) {
    for (const std::int64_t num_tokens : {1, 3, 9}) {
      for (const std::int64_t column : {5, 139}) {
        for (const bool is_transposed : {false, true}) {
          Fp8Layer layer(num_tokens, kHidden, 1, kSize, Activation::kRelu2NoMul);
          layer.args.w13_scale = layer.scales({1, 2, 2});
          layer.args.w2_scale = layer.scales({1, 2, 2});
          if (is_transposed) {
            layer.args.w2 = contract::strided(layer.args.w2, {kHidden * kSize, 1, kHidden});
          }
          layer.w2[static_cast<std::size_t>(is_transposed ? column * kHidden + 150
                                                          : 150 * kSize + column)] = 0xff;
          Context context;
          context.implementation = name;
          if (layer.run(context).code() == StatusCode::kUnsupported) continue;
          for (std::size_t i = 0; i < layer.output.size(); ++i) {
            EXPECT_EQ(std::isnan(layer.output[i]), i % kHidden == 150)
                << name << " " << num_tokens << " " << column << " " << is_transposed << " " << i;
          }
        }
      }
    }
  }
}

TEST(FusedExpertsFp8, FastImplementationsKeepNansOfX) {
  for (const char* name : {"cpu/avx512", "cpu/avx2", "cpu/portable", "cpu/reference"}) {
    Fp8Layer layer(2, 300, 1, 40);
    layer.args.w13_scale = layer.scales({1, 2, 3});
    layer.args.w2_scale = layer.scales({1, 3, 1});
    layer.x[299] = NAN;
    Context context;
    context.implementation = name;
    if (layer.run(context).code() == StatusCode::kUnsupported) continue;
    for (std::size_t i = 0; i < layer.output.size(); ++i) {
      EXPECT_EQ(std::isnan(layer.output[i]), i < 300) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace tessera::test
