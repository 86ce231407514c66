// Problems of fused_experts for tests of its CUDA policy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/fused_experts_problem.hpp"

namespace tessera::cuda {

inline constexpr DLDataType kBfloat16{kDLBfloat, 16, 1};
inline constexpr int kSms = 132;

struct Sizes {
  std::int64_t tokens = 64;
  std::int64_t slots = 8;
  std::int64_t experts = 16;
  std::int64_t hidden = 256;
  std::int64_t intermediate = 96;
};

/// An address that is `value` beyond a multiple of 4096.
inline const void* address(std::size_t value) {
  alignas(4096) static const std::byte memory[3 * 4096] = {};
  return memory + value;
}

/// Weights [experts, rows, columns] at an aligned address, without gaps.
inline core::ExpertWeights weights(std::int64_t rows, std::int64_t columns) {
  return {address(4096), rows * columns, columns, 1, nullptr, 0};
}

/// A contiguous call on aligned arrays.
inline core::FusedExpertsProblem problem_of(const Sizes& sizes,
                                            Activation activation = Activation::kSilu) {
  core::FusedExpertsProblem problem{};
  problem.activation = activation;
  problem.num_tokens = sizes.tokens;
  problem.top_k = sizes.slots;
  problem.num_experts = problem.num_global_experts = sizes.experts;
  problem.hidden_size = sizes.hidden;
  problem.intermediate_size = sizes.intermediate;
  problem.dtype = kBfloat16;
  problem.x = address(256);
  problem.x_stride = sizes.hidden;
  problem.topk_ids_stride = sizes.slots;
  problem.w13 = weights(problem.num_gate_up_rows(), sizes.hidden);
  problem.w2 = weights(sizes.hidden, sizes.intermediate);
  return problem;
}

/// The same call with weights in float8_e4m3fn.
inline core::FusedExpertsProblem fp8_problem_of(
    const Sizes& sizes, core::WeightScales kind = core::WeightScales::kPerBlock) {
  core::FusedExpertsProblem problem = problem_of(sizes);
  problem.w13.scales.kind = problem.w2.scales.kind = kind;
  return problem;
}

}  // namespace tessera::cuda
