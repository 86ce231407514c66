// What an implementation of fused_moe takes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/fused_experts_problem.hpp"
#include "core/select_experts_problem.hpp"

namespace tessera::core {

/// A validated call of each of the two ops. The experts read what the selection writes: where the
/// caller gives no array for it, both pointers are null until place_choice().
struct FusedMoeProblem {
  SelectExpertsProblem selection;
  FusedExpertsProblem experts;

  /// Bytes of workspace for weights and ids, whoever gives arrays for them.
  std::size_t choice_bytes() const {
    return array_bytes() == 0 ? 0 : 2 * array_bytes() + kAlignment - 1;
  }

  /// Places weights and ids that the caller does not ask for in the workspace. Returns its rest.
  std::span<std::byte> place_choice(std::span<std::byte> workspace) {
    if (array_bytes() == 0) return workspace;
    void* begin = workspace.data();
    std::size_t space = workspace.size();
    auto* const weights = static_cast<std::byte*>(std::align(kAlignment, 0, begin, space));
    std::byte* const ids = weights + array_bytes();
    if (selection.topk_weights == nullptr) {
      selection.topk_weights = reinterpret_cast<float*>(weights);
      experts.topk_weights = weights;
    }
    if (selection.topk_ids == nullptr) {
      selection.topk_ids = reinterpret_cast<std::int32_t*>(ids);
      experts.topk_ids = ids;
    }
    return workspace.last(space - 2 * array_bytes());
  }

 private:
  static constexpr std::size_t kAlignment = 256;

  /// No machine has room for so many pairs, and sums with what the ops need stay below 2^63.
  static constexpr std::int64_t kMostPairs = std::int64_t{1} << 58;

  /// Of weights, and as many of ids.
  std::size_t array_bytes() const {
    const auto elements =
        static_cast<std::size_t>(std::min(selection.num_tokens * selection.top_k, kMostPairs));
    return (elements * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  }
};

}  // namespace tessera::core
