// Calls of fused_experts with weights in float8_e4m3fn, for tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "tessera/fused_experts.hpp"

namespace tessera::test {

inline constexpr DLDataType kFp8{dtypes::kFloat8E4m3Code, 8, 1};
inline constexpr DLDataType kBf16{kDLBfloat, 16, 1};
inline constexpr DLDataType kFp32{kDLFloat, 32, 1};
inline constexpr DLDataType kInt32{kDLInt, 32, 1};

// Bits of float8_e4m3fn.
inline constexpr std::uint8_t kOne = 0x38;
inline constexpr std::uint8_t kTwo = 0x40;
inline constexpr std::uint8_t kThree = 0x44;

/// A call on arrays of its own; silu unless a test changes it.
struct Fp8Layer {
  Fp8Layer(std::int64_t num_tokens, std::int64_t hidden, std::int64_t experts, std::int64_t size,
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

}  // namespace tessera::test
