// The steps of fused_experts on a chunk of a call's tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/align_block_size_problem.hpp"
#include "core/fused_experts_problem.hpp"
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/fused_experts/prepared_kernels.hpp"
#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/launch.hpp"
#include "cuda/quantize_fp8/kernel.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Outputs of a tile of so many columns, or rows of the weights.
inline std::int32_t outputs_of_tile(const ProductArgs& args, int columns) {
  return args.is_gated ? columns / 2 : columns;
}

class Chunk {
 public:
  Chunk(const core::FusedExpertsProblem& call, std::int64_t first_token, std::int64_t num_tokens,
        ProductStrategy strategy, const Context& context);

  /// Starts the kernels of all steps.
  Status run() const;

  std::size_t workspace_bytes() const;

 private:
  /// Null where there is no memory yet, as for a query.
  template <typename T>
  T* at(std::size_t offset) const {
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + offset);
  }

  bool is_bfloat16() const { return problem_.dtype.code == kDLBfloat; }

  static Status refuse_tensor_map(const char* step, CUresult error);
  Status launch(const Kernel& kernel, std::int64_t num_ctas, int num_threads,
                std::size_t shared_bytes, void* args, const char* step) const;

  // The caller's ids, or what find_experts writes.
  const void* pair_experts() const;
  DLDataType pair_experts_dtype() const;
  Status find_experts() const;

  core::AlignBlockSizeProblem alignment() const;
  Status align() const;

  ProductArgs product(const core::ExpertWeights& weights) const;
  ProductArgs gate_up() const;
  ProductArgs down() const;
  ProductArgs args_of(ProductKind kind, int columns) const;
  Status multiply(ProductKind kind) const;
  template <typename Product>
  Status multiply_by_wgmma(ProductKind kind, const Product& product) const;

  Status multiply_fp8() const;
  Status quantize(const void* rows, DLDataType dtype, const float* scale, std::size_t values_at,
                  std::size_t scales_at, std::int64_t num_rows, std::int64_t row_size,
                  std::int64_t row_stride, const QuantizeFp8Rows& counted_rows) const;
  Status quantize_x() const;
  Status quantize_intermediate() const;
  Fp8ProductArgs fp8_args_of(ProductKind kind, int columns) const;
  Status multiply_fp8(ProductKind kind) const;
  WgmmaFp8Product wgmma_fp8_args_of(ProductKind kind) const;

  Status swap_ab() const;
  bool quantises_x_while_clearing() const;
  Status start_swap_ab(SwapAbCounters counters) const;
  CUresult describe(ProductKind kind, int tile_rows, SwapAbProduct* product) const;

  CombineArgs combination() const;
  Status combine() const;

  core::FusedExpertsProblem problem_;
  ProductStrategy strategy_;
  FusedExpertsWorkspace workspace_;
  ProductAccesses accesses_;
  const Context& context_;
  std::int32_t num_pairs_;
  std::byte* memory_;
};

}  // namespace tessera::cuda
