// What is special to fused_experts with weights in float8_e4m3fn: values worked out by hand, and
// scales that do not fit their call.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "case_arguments.hpp"
#include "tessera/fused_experts.hpp"
#include "tessera/quantize_fp8.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};

// Bits of float8_e4m3fn.
constexpr std::uint8_t kOne = 0x38;
constexpr std::uint8_t kTwo = 0x40;
constexpr std::uint8_t kThree = 0x44;

/// A call on arrays of its own; silu unless a test changes it.
struct Layer {
  Layer(std::int64_t num_tokens, std::int64_t hidden, std::int64_t experts, std::int64_t size,
        Activation which = Activation::kSilu)
      : x(static_cast<std::size_t>(num_tokens * hidden), 1),
        x_fp8(x.size(), kOne),
        w13(static_cast<std::size_t>(experts * size * (has_gate(which) ? 2 : 1) * hidden), kOne),
        w2(static_cast<std::size_t>(experts * hidden * size), kOne),
        weights(static_cast<std::size_t>(num_tokens), 1),
        ids(static_cast<std::size_t>(num_tokens), 0),
        output(x.size(), NAN),
        bits16(x.size()) {
    const std::int64_t rows = has_gate(which) ? 2 * size : size;
    args.x = TensorView::of(x.data(), kFp32, {num_tokens, hidden});
    args.w13 = TensorView::of(w13.data(), kFp8, {experts, rows, hidden});
    args.w2 = TensorView::of(w2.data(), kFp8, {experts, hidden, size});
    args.topk_weights = TensorView::of(weights.data(), kFp32, {num_tokens, 1});
    args.topk_ids = TensorView::of(ids.data(), kInt32, {num_tokens, 1});
    args.output = TensorView::of(output.data(), kFp32, {num_tokens, hidden});
    args.activation = which;
  }

  /// All scales are `value` until a test changes them.
  TensorView scales(std::initializer_list<std::int64_t> shape, float value = 1) {
    std::int64_t count = 1;
    for (const std::int64_t length : shape) count *= length;
    memory.emplace_back(static_cast<std::size_t>(count), value);
    return TensorView::of(memory.back().data(), kFp32, shape);
  }

  void use_fp8_x() {
    args.x = TensorView::of(x_fp8.data(), kFp8, {args.x.shape[0], args.x.shape[1]});
  }

  Status run(Context context = {}) {
    std::size_t bytes = 0;
    if (Status s = fused_experts_workspace_bytes(args, context, &bytes); !s.ok()) return s;
    std::vector<std::byte> workspace(bytes);
    context.workspace = workspace;
    return fused_experts(args, context);
  }

  std::vector<float> x;
  std::vector<std::uint8_t> x_fp8;
  std::vector<std::uint8_t> w13;
  std::vector<std::uint8_t> w2;
  std::vector<float> weights;
  std::vector<std::int32_t> ids;
  std::vector<float> output;
  std::vector<std::uint16_t> bits16;
  std::vector<std::vector<float>> memory;
  FusedExpertsArgs args;
};

enum class WeightsOf { kBlocks, kRows };

float& scale_at(const TensorView& scales, std::int64_t index) {
  return static_cast<float*>(scales.data)[index];
}

TEST(FusedExpertsFp8, ComputesValuesWrittenByHand) {
  // relu2, two experts with a scale each, and static scales: q = x / 2 = 8, X = 2.
  Layer layer(2, 1, 2, 1, Activation::kRelu2NoMul);
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
  Layer layer(1, 256, 1, 1, Activation::kRelu2NoMul);
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
  Layer layer(1, 1, 1, kSize, Activation::kSwigluoaiUninterleave);
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
  Layer layer(1, 1, 1, 1, Activation::kRelu2NoMul);
  layer.args.w13_scale = layer.scales({1});
  layer.args.w2_scale = layer.scales({1});
  layer.x = {0.95F};  // 448 * 0.00212; with the scale 2^-8, 243.2 becomes 240
  layer.args.use_ue8m0 = true;
  ASSERT_TRUE(layer.run().ok());
  // (240 / 256)^2 = 0.87890625, which is 225 / 256 and becomes 224 / 256.
  EXPECT_EQ(layer.output[0], 0.875F);
}

TEST(FusedExpertsFp8, TakesXInFp8WithAnyTypeOfOutput) {
  Layer layer(1, 2, 1, 1, Activation::kRelu2NoMul);
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
  Layer layer(2, 2, 1, 1, Activation::kRelu2NoMul);
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
  Layer layer(kTokens, kHidden, 3, kSize);
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
          Layer layer(num_tokens, kHidden, 1, kSize, Activation::kRelu2NoMul);
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
    Layer layer(2, 300, 1, 40);
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

struct BadScales {
  std::function<void(Layer*)> spoil;
  const char* message;
};

TEST(FusedExpertsFp8, RefusesScalesThatDoNotFit) {
  const auto x_scale = [](std::initializer_list<std::int64_t> shape) {
    return [shape = std::vector<std::int64_t>(shape)](Layer* layer) {
      DLTensor tensor{};
      tensor.data = layer->scales({64}).data;
      tensor.ndim = static_cast<int>(shape.size());
      tensor.dtype = kFp32;
      tensor.device = kHostDevice;
      tensor.shape = const_cast<std::int64_t*>(shape.data());
      layer->args.x_scale = TensorView::of(tensor);
    };
  };
  const auto both = [](auto first, auto second) {
    return [first, second](Layer* layer) {
      first(layer);
      second(layer);
    };
  };
  const auto fp8_x = [](Layer* layer) { layer->use_fp8_x(); };
  const auto per_row = [](Layer* layer) {
    layer->args.w13_scale = layer->scales({2, 384, 1});
    layer->args.w2_scale = layer->scales({2, 200, 1});
  };
  const auto intermediate = [](Layer* layer) {
    layer->args.intermediate_scale = layer->scales({1});
  };
  const auto no_fp8 = [](Layer* layer) {
    layer->memory.emplace_back(2 * 384 * 200);
    layer->args.w13 = TensorView::of(layer->memory.back().data(), kFp32, {2, 384, 200});
    layer->args.w2 = TensorView::of(layer->memory.back().data(), kFp32, {2, 200, 192});
    layer->args.w13_scale = layer->args.w2_scale = {};
  };
  const BadScales all[] = {
      {[](Layer* l) { l->args.w13_scale = {}; },
       "w13_scale: expected a float32 array where w13 is float8_e4m3fn, got none"},
      {[](Layer* l) { l->args.w2_scale = {}; },
       "w2_scale: expected a float32 array where w2 is float8_e4m3fn, got none"},
      {[](Layer* l) {
         l->args.w13_scale = l->scales({2, 3, 2});
       },
       "w13_scale.shape: expected [2] per expert, [2, 384, 1] per row or [2, 4, 2] of "
       "blocks, got [2, 3, 2]"},
      {[](Layer* l) {
         l->args.w13_scale = l->scales({2, 1});
       },
       "w13_scale.shape: expected [2] per expert, [2, 384, 1] per row or [2, 4, 2] of "
       "blocks, got [2, 1]"},
      {[](Layer* l) { l->args.w13_scale = l->scales({2}); },
       "w2_scale.shape: expected [2], as w13 has scales per expert, got [2, 2, 2]"},
      {[](Layer* l) {
         l->args.w2_scale = l->scales({2, 200, 1});
       },
       "w2_scale.shape: expected [2, 2, 2], as w13 has scales of blocks, got [2, 200, 1]"},
      {[](Layer* l) { l->args.w2_scale.dtype = kBf16; },
       "w2_scale.dtype: expected float32, got bfloat16"},
      {x_scale({1}),
       "x_scale: expected none where x is not float8_e4m3fn and weights have scales of blocks, got "
       "one of shape [1]"},
      {intermediate,
       "intermediate_scale: expected none where weights have scales of blocks, got one of shape "
       "[1]"},
      {both(per_row, x_scale({3, 1})),
       "x_scale.shape: expected [1] where x is not float8_e4m3fn, got [3, 1]"},
      {both(per_row, x_scale({1})),
       "intermediate_scale: expected a float32 array where x_scale is given, got none"},
      {both(per_row, intermediate),
       "intermediate_scale: expected none where x_scale is not [1], got one of shape [1]"},
      {fp8_x, "x_scale: expected a float32 array where x is float8_e4m3fn, got none"},
      {both(fp8_x, x_scale({3, 1})), "x_scale.shape: expected [3, 2], got [3, 1]"},
      {both(fp8_x, both(per_row, x_scale({3, 2}))),
       "x_scale.shape: expected [1] or [3, 1], got [3, 2]"},
      {both(fp8_x, both(per_row, both(x_scale({3, 1}), intermediate))),
       "intermediate_scale: expected none where x_scale is not [1], got one of shape [1]"},
      {both(both(per_row, x_scale({1})),
            [](Layer* l) {
              l->args.intermediate_scale = l->scales({1, 1});
            }),
       "intermediate_scale.shape: expected [1], got [1, 1]"},
      {both(both(per_row, x_scale({1})),
            both(intermediate, [](Layer* l) { l->args.use_ue8m0 = true; })),
       "use_ue8m0: expected false where all scales are given, got true"},
      {both(no_fp8, [](Layer* l) { l->args.w13_scale = l->scales({2}); }),
       "w13_scale: expected none where w13 is not float8_e4m3fn, got one of shape [2]"},
      {both(no_fp8, [](Layer* l) { l->args.w2_scale = l->scales({2}); }),
       "w2_scale: expected none where w13 is not float8_e4m3fn, got one of shape [2]"},
      {both(no_fp8, x_scale({1})),
       "x_scale: expected none where w13 is not float8_e4m3fn, got one of shape [1]"},
      {both(no_fp8, intermediate),
       "intermediate_scale: expected none where w13 is not float8_e4m3fn, got one of shape [1]"},
      {both(no_fp8, [](Layer* l) { l->args.use_ue8m0 = true; }),
       "use_ue8m0: expected false where w13 is not float8_e4m3fn, got true"},
      {both(no_fp8, [](Layer* l) { l->args.x.dtype = kFp8; }),
       "w13.dtype: expected float8_e4m3fn, as x has, got float32"},
      {[](Layer* l) {
         l->args.w13.dtype = {kDLUInt, 8, 1};
       },
       "w13.dtype: expected float32, as x has, or float8_e4m3fn, got uint8"},
      {[](Layer* l) {
         l->args.w2.dtype = {kDLUInt, 8, 1};
       },
       "w2.dtype: expected float8_e4m3fn, as w13 has, got uint8"},
      {both(both(fp8_x, x_scale({3, 2})), [](Layer* l) { l->args.output.dtype = kFp8; }),
       "output.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn"},
      {both(both(fp8_x, x_scale({3, 2})),
            [](Layer* l) {
              l->args.w2_bias = TensorView::of(l->bits16.data(), kBf16, {2, 200});
            }),
       "w2_bias.dtype: expected float32, as output has, got bfloat16"},
      {[](Layer* l) {
         l->args.w2_bias = TensorView::of(l->bits16.data(), kBf16, {2, 200});
       },
       "w2_bias.dtype: expected float32, as x has, got bfloat16"},
  };
  for (const BadScales& bad : all) {
    Layer layer(3, 200, 2, 192);
    layer.args.w13_scale = layer.scales({2, 4, 2});
    layer.args.w2_scale = layer.scales({2, 2, 2});
    ASSERT_TRUE(layer.run().ok());
    std::fill(layer.output.begin(), layer.output.end(), 17.0F);
    bad.spoil(&layer);
    const Status status = layer.run();
    EXPECT_EQ(status.message(), "fused_experts: " + std::string(bad.message));
    EXPECT_EQ(layer.output, std::vector<float>(600, 17.0F)) << bad.message;
  }
}

}  // namespace
}  // namespace tessera::test
