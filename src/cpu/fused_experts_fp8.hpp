// A vector that fused_experts multiplies with weights in float8_e4m3fn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/fused_experts_problem.hpp"
#include "core/quantize_fp8_problem.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/workspace.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

template <typename T>
constexpr DLDataType dtype_of() {
  if constexpr (std::is_same_v<T, Bfloat16>) return {kDLBfloat, 16, 1};
  if constexpr (std::is_same_v<T, Float16>) return {kDLFloat, 16, 1};
  return {kDLFloat, 32, 1};
}

/// Values in float8_e4m3fn, with a scale for each group of them, or for all.
class Fp8Vector {
 public:
  using Quantize = Status (*)(const core::QuantizeFp8Problem& problem, const Context& context);

  Fp8Vector(std::int64_t length, core::WeightScales kind, Parts* parts)
      : length_(length),
        group_(group_of(length, kind)),
        own_scales_(parts->take<float>(scale_bytes(length, kind))),
        own_values_(parts->take<Float8E4m3>(value_bytes(length, kind))) {}

  /// Bytes of workspace of a vector; none without scales.
  static std::int64_t bytes_for(std::int64_t length, core::WeightScales kind) {
    return scale_bytes(length, kind) + value_bytes(length, kind);
  }

  /// Elements with the same scale.
  std::int64_t group() const { return group_; }
  const Float8E4m3* values() const { return values_; }
  const float* scales() const { return scales_; }

  /// Shows memory of the caller.
  void view(const Float8E4m3* values, const float* scales) {
    values_ = values;
    scales_ = scales;
  }

  /// Quantises contiguous elements, with `scale` unless that is null.
  void quantize(const void* elements, DLDataType dtype, const float* scale, bool use_ue8m0,
                Quantize quantize) {
    core::QuantizeFp8Problem problem{};
    problem.x = elements;
    problem.dtype = dtype;
    problem.scale = scale;
    problem.values = reinterpret_cast<std::uint8_t*>(own_values_);
    problem.scales = own_scales_;
    problem.group = group_ == length_ ? Fp8Group::kRow : Fp8Group::k1x128;
    problem.use_ue8m0 = use_ue8m0;
    problem.num_tokens = 1;
    problem.hidden_size = length_;
    Context alone;
    alone.num_threads = 1;
    static_cast<void>(quantize(problem, alone));  // never fails
    view(own_values_, own_scales_);
  }

 private:
  static std::int64_t group_of(std::int64_t length, core::WeightScales kind) {
    const bool is_cut = kind == core::WeightScales::kPerBlock && length > core::kScaleBlock;
    return is_cut ? core::kScaleBlock : length;
  }

  static std::int64_t scale_bytes(std::int64_t length, core::WeightScales kind) {
    return core::num_scale_blocks(length) * static_cast<std::int64_t>(sizeof(float)) *
           (kind == core::WeightScales::kNone ? 0 : 1);
  }

  /// Whole scales, so that those of the next vector are aligned.
  static std::int64_t value_bytes(std::int64_t length, core::WeightScales kind) {
    return kind == core::WeightScales::kNone ? 0 : (length + 3) / 4 * 4;
  }

  std::int64_t length_;
  std::int64_t group_;
  float* own_scales_;
  Float8E4m3* own_values_;
  const Float8E4m3* values_ = nullptr;
  const float* scales_ = nullptr;
};

}  // namespace tessera::cpu
