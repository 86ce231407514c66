// What the launcher of moe_sum and its kernels share, and how a launch is planned. No CUDA headers,
// so that it can be tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/moe_sum_problem.hpp"

namespace tessera::cuda {

/// The arguments of the kernel, for elements of any type. Strides are in bytes.
struct MoeSumKernelArgs {
  const void* input;
  const float* topk_weights;  ///< null: all are 1
  void* output;
  std::int32_t top_k;
  std::uint32_t words_per_row;
  std::uint32_t ctas_per_row;
  std::int64_t token_stride;
  std::int64_t slot_stride;
  std::int64_t output_stride;
};

enum class MoeSumType : std::uint8_t { kFloat16, kBfloat16, kFloat32 };
inline constexpr int kNumMoeSumTypes = 3;

/// A kernel for CTAs of kMoeSumThreads threads, each of which sums one word of a row: 16 bytes, or
/// a single element.
const void* moe_sum_kernel(MoeSumType type, bool has_vectors);
inline constexpr int kMoeSumThreads = 128;
inline constexpr int kMoeSumVectorBytes = 16;

struct MoeSumPlan {
  MoeSumType type;
  bool has_vectors;
  std::uint32_t words_per_row;
  std::uint32_t ctas_per_row;
  std::int64_t num_ctas;
};

/// Plans vectors if every row starts at a multiple of their size and consists of whole vectors.
/// `addresses` are those of all arrays of rows, and `strides`, in elements, all distances between
/// rows; bits that are set in one of them are set here.
inline MoeSumPlan plan_sums(DLDataType dtype, std::int64_t num_tokens, std::int64_t hidden_size,
                            std::uintptr_t addresses, std::int64_t strides) {
  // A query may leave the type open.
  const std::int64_t element_bytes = std::max(1, dtype.bits / 8);
  MoeSumPlan plan{};
  plan.type = dtype.code == kDLBfloat ? MoeSumType::kBfloat16
              : dtype.bits == 16      ? MoeSumType::kFloat16
                                      : MoeSumType::kFloat32;
  plan.has_vectors = addresses % kMoeSumVectorBytes == 0 &&
                     (strides | hidden_size) % (kMoeSumVectorBytes / element_bytes) == 0;
  plan.words_per_row = static_cast<std::uint32_t>(
      plan.has_vectors ? hidden_size * element_bytes / kMoeSumVectorBytes : hidden_size);
  plan.ctas_per_row = (plan.words_per_row + kMoeSumThreads - 1) / kMoeSumThreads;
  plan.num_ctas = num_tokens * plan.ctas_per_row;
  return plan;
}

inline MoeSumPlan plan_moe_sum(const core::MoeSumProblem& p) {
  const auto addresses =
      reinterpret_cast<std::uintptr_t>(p.input) | reinterpret_cast<std::uintptr_t>(p.output);
  return plan_sums(p.dtype, p.num_tokens, p.hidden_size, addresses,
                   p.token_stride | p.slot_stride | p.output_stride);
}

}  // namespace tessera::cuda
