// What the launcher of moe_unpermute and its kernels share, and how a launch is planned: like one
// of moe_sum. No CUDA headers, so that it can be tested without a GPU.
#pragma once

#include <cstdint>

#include "core/moe_unpermute_problem.hpp"
#include "cuda/moe_sum/kernel.hpp"

namespace tessera::cuda {

/// The arguments of the kernel, for elements of any type. Strides are in bytes.
struct MoeUnpermuteKernelArgs {
  const void* rows;
  const float* topk_weights;  ///< null: all are 1
  const std::int32_t* inverse;
  void* output;
  std::int32_t top_k;
  std::uint32_t num_rows;
  std::uint32_t words_per_row;
  std::uint32_t ctas_per_row;
  std::int64_t row_stride;
  std::int64_t output_stride;
};

/// How a kernel reads rows. Vectors of at most kMoeUnpermuteFewSlots slots have a kernel of their
/// own, with fewer registers: more threads then hide how long memory takes.
enum class MoeUnpermuteAccess : std::uint8_t { kElements, kVectors, kVectorsOfFewSlots };
inline constexpr int kNumMoeUnpermuteAccesses = 3;
inline constexpr int kMoeUnpermuteFewSlots = 2;

/// A kernel for CTAs of kMoeSumThreads threads, each of which sums one word of a row: 16 bytes, or
/// a single element.
const void* moe_unpermute_kernel(MoeSumType type, MoeUnpermuteAccess access);

inline MoeSumPlan plan_moe_unpermute(const core::MoeUnpermuteProblem& p) {
  const auto addresses =
      reinterpret_cast<std::uintptr_t>(p.rows) | reinterpret_cast<std::uintptr_t>(p.output);
  return plan_sums(p.dtype, p.num_tokens, p.hidden_size, addresses, p.row_stride | p.output_stride);
}

}  // namespace tessera::cuda
