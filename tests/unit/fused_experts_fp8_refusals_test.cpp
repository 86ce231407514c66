// Scales of fused_experts that do not fit their call.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "fused_experts_fp8_layer.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::test {
namespace {

struct BadScales {
  std::function<void(Fp8Layer*)> spoil;
  const char* message;
};

TEST(FusedExpertsFp8, RefusesScalesThatDoNotFit) {
  const auto x_scale = [](std::initializer_list<std::int64_t> shape) {
    return [shape = std::vector<std::int64_t>(shape)](Fp8Layer* layer) {
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
    return [first, second](Fp8Layer* layer) {
      first(layer);
      second(layer);
    };
  };
  const auto fp8_x = [](Fp8Layer* layer) { layer->use_fp8_x(); };
  const auto per_row = [](Fp8Layer* layer) {
    layer->args.w13_scale = layer->scales({2, 384, 1});
    layer->args.w2_scale = layer->scales({2, 200, 1});
  };
  const auto intermediate = [](Fp8Layer* layer) {
    layer->args.intermediate_scale = layer->scales({1});
  };
  const auto no_fp8 = [](Fp8Layer* layer) {
    layer->memory.emplace_back(2 * 384 * 200);
    layer->args.w13 = TensorView::of(layer->memory.back().data(), kFp32, {2, 384, 200});
    layer->args.w2 = TensorView::of(layer->memory.back().data(), kFp32, {2, 200, 192});
    layer->args.w13_scale = layer->args.w2_scale = {};
  };
  const BadScales all[] = {
      {[](Fp8Layer* l) { l->args.w13_scale = {}; },
       "w13_scale: expected a float32 array where w13 is float8_e4m3fn, got none"},
      {[](Fp8Layer* l) { l->args.w2_scale = {}; },
       "w2_scale: expected a float32 array where w2 is float8_e4m3fn, got none"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 3, 2});
       },
       "w13_scale.shape: expected [2, 4, 2] for scales of blocks, got [2, 3, 2]"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 16, 8});
       },
       "w13_scale.shape: expected [2, 4, 2] for scales of blocks, got [2, 16, 8]"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 192, 1});
       },
       "w13_scale.shape: expected [2, 384, 1] for scales per row, got [2, 192, 1]"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 384, 2});
       },
       "w13_scale.shape: expected [2, 384, 1] for scales per row, got [2, 384, 2]"},
      {[](Fp8Layer* l) { l->args.w13_scale = l->scales({3}); },
       "w13_scale.shape: expected [2] for scales per expert, got [3]"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 1, 1});
       },
       "w13_scale.shape: expected [2] per expert, [2, 384, 1] per row or [2, 4, 2] of "
       "blocks, got [2, 1, 1]"},
      {[](Fp8Layer* l) {
         l->args.w13_scale = l->scales({2, 1});
       },
       "w13_scale.shape: expected [2] per expert, [2, 384, 1] per row or [2, 4, 2] of "
       "blocks, got [2, 1]"},
      {[](Fp8Layer* l) { l->args.w13_scale = l->scales({2}); },
       "w2_scale.shape: expected [2], as w13 has scales per expert, got [2, 2, 2]"},
      {[](Fp8Layer* l) {
         l->args.w2_scale = l->scales({2, 200, 1});
       },
       "w2_scale.shape: expected [2, 2, 2], as w13 has scales of blocks, got [2, 200, 1]"},
      {[](Fp8Layer* l) { l->args.w2_scale.dtype = kBf16; },
       "w2_scale.dtype: expected float32, got bfloat16"},
      {x_scale({1}),
       "x_scale: expected none where x is not float8_e4m3fn and weights have scales of blocks, got "
       "one of shape [1]"},
      {intermediate,
       "intermediate_scale: expected none where weights have scales of blocks, got one of shape "
       "[1]"},
      {both(per_row, x_scale({3, 1})),
       "x_scale.shape: expected [1] where x is not float8_e4m3fn, got [3, 1]"},
      {both(per_row,
            [](Fp8Layer* l) {
              l->args.x_scale = l->scales({1});
              l->args.x_scale.ndim = -1;
            }),
       "x_scale.shape: expected [1] where x is not float8_e4m3fn, got -1 axes"},
      {both(per_row, x_scale({1})),
       "intermediate_scale: expected a float32 array where x_scale is given, got none"},
      {both(per_row, intermediate),
       "x_scale: expected a float32 array where intermediate_scale is given, got none"},
      {fp8_x, "x_scale: expected a float32 array where x is float8_e4m3fn, got none"},
      {both(fp8_x, x_scale({3, 1})), "x_scale.shape: expected [3, 2], got [3, 1]"},
      {both(fp8_x, both(per_row, x_scale({3, 2}))),
       "x_scale.shape: expected [1] or [3, 1], got [3, 2]"},
      {both(fp8_x, both(per_row, both(x_scale({3, 1}), intermediate))),
       "intermediate_scale: expected none where x_scale is not [1], got one of shape [1]"},
      {both(both(per_row, x_scale({1})),
            [](Fp8Layer* l) {
              l->args.intermediate_scale = l->scales({1, 1});
            }),
       "intermediate_scale.shape: expected [1], got [1, 1]"},
      {both(both(per_row, x_scale({1})),
            both(intermediate, [](Fp8Layer* l) { l->args.use_ue8m0 = true; })),
       "use_ue8m0: expected false where all scales are given, got true"},
      {both(no_fp8, [](Fp8Layer* l) { l->args.w13_scale = l->scales({2}); }),
       "w13_scale: expected none where w13 is not float8_e4m3fn, got one of shape [2]"},
      {both(no_fp8, [](Fp8Layer* l) { l->args.w2_scale = l->scales({2}); }),
       "w2_scale: expected none where w13 is not float8_e4m3fn, got one of shape [2]"},
      {both(no_fp8, x_scale({1})),
       "x_scale: expected none where w13 is not float8_e4m3fn, got one of shape [1]"},
      {both(no_fp8, intermediate),
       "intermediate_scale: expected none where w13 is not float8_e4m3fn, got one of shape [1]"},
      {both(no_fp8, [](Fp8Layer* l) { l->args.use_ue8m0 = true; }),
       "use_ue8m0: expected false where w13 is not float8_e4m3fn, got true"},
      {both(no_fp8, [](Fp8Layer* l) { l->args.x.dtype = kFp8; }),
       "w13.dtype: expected float8_e4m3fn, as x has, got float32"},
      {[](Fp8Layer* l) {
         l->args.w13.dtype = {kDLUInt, 8, 1};
       },
       "w13.dtype: expected float32, as x has, or float8_e4m3fn, got uint8"},
      {[](Fp8Layer* l) {
         l->args.w2.dtype = {kDLUInt, 8, 1};
       },
       "w2.dtype: expected float8_e4m3fn, as w13 has, got uint8"},
      {both(both(fp8_x, x_scale({3, 2})), [](Fp8Layer* l) { l->args.output.dtype = kFp8; }),
       "output.dtype: expected float16, bfloat16 or float32, got float8_e4m3fn"},
      {both(both(fp8_x, x_scale({3, 2})),
            [](Fp8Layer* l) {
              l->args.w2_bias = TensorView::of(l->bits16.data(), kBf16, {2, 200});
            }),
       "w2_bias.dtype: expected float32, as output has, got bfloat16"},
      {[](Fp8Layer* l) {
         l->args.w2_bias = TensorView::of(l->bits16.data(), kBf16, {2, 200});
       },
       "w2_bias.dtype: expected float32, as x has, got bfloat16"},
  };
  for (const BadScales& bad : all) {
    Fp8Layer layer(3, 200, 2, 192);
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
