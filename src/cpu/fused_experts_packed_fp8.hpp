// Vectors that are quantised to float8_e4m3fn on their way into a product.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/fused_experts_fp8.hpp"
#include "cpu/fused_experts_kernels.hpp"
#include "cpu/processor.hpp"
#include "cpu/quantize_fp8.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {

/// One thread's hidden states and intermediates, which it packs as float32 times their scales.
class PackedFp8 {
 public:
  /// Takes memory for nothing where the problem has no scales.
  PackedFp8(const core::FusedExpertsProblem& p, Parts parts)
      : p_(p),
        hidden_(p.hidden_size, p.w13.scales.kind, &parts),
        intermediate_(p.intermediate_size, p.w13.scales.kind, &parts),
        row_(parts.take<float>(0)),
        quantize_(quantize_here()) {}

  static std::int64_t bytes_for(const core::FusedExpertsProblem& p) {
    return Fp8Vector::bytes_for(p.hidden_size, p.w13.scales.kind) +
           Fp8Vector::bytes_for(p.intermediate_size, p.w13.scales.kind) +
           p.intermediate_size * static_cast<std::int64_t>(sizeof(float));
  }

  void pack_token(std::int64_t token, const PackedLayout& layout, const ExpertKernels& kernels,
                  float* packed) {
    if (p_.is_x_fp8) {
      hidden_.view(static_cast<const Float8E4m3*>(p_.x) + token * p_.x_stride,
                   p_.x_scale + token * p_.x_scale_stride);
    } else {
      const auto* const x = static_cast<const std::byte*>(p_.x);
      hidden_.quantize(x + token * p_.x_stride * (p_.dtype.bits / 8), p_.dtype, p_.x_scale,
                       p_.use_ue8m0, quantize_);
    }
    pack(hidden_, layout, kernels, packed);
  }

  /// Quantises a packed vector in its place.
  void pack_activated(const PackedLayout& layout, const ExpertKernels& kernels, float* packed) {
    for_each_block(layout, packed, [&](std::int64_t begin, std::int64_t size, float* block) {
      std::copy_n(block, size, row_ + begin);
    });
    intermediate_.quantize(row_, {kDLFloat, 32, 1}, p_.intermediate_scale, p_.use_ue8m0, quantize_);
    pack(intermediate_, layout, kernels, packed);
  }

 private:
  static Fp8Vector::Quantize quantize_here() {
    static const bool runs_avx2 = has_avx2();
    return runs_avx2 ? quantize_fp8_avx2 : quantize_fp8_portable;
  }

  template <typename Visit>
  static void for_each_block(const PackedLayout& layout, float* packed, const Visit& visit) {
    for (std::int64_t begin = 0; begin < layout.length; begin += layout.width) {
      visit(begin, std::min(layout.width, layout.length - begin), packed);
      packed += layout.block_stride;
    }
  }

  static void pack(const Fp8Vector& vector, const PackedLayout& layout,
                   const ExpertKernels& kernels, float* packed) {
    for_each_block(layout, packed, [&](std::int64_t begin, std::int64_t size, float* block) {
      // A block has one scale.
      kernels.pack_fp8(vector.values() + begin, size, vector.scales()[begin / vector.group()],
                       block);
    });
  }

  const core::FusedExpertsProblem& p_;
  Fp8Vector hidden_;
  Fp8Vector intermediate_;
  float* row_;
  Fp8Vector::Quantize quantize_;
};

}  // namespace tessera::cpu
