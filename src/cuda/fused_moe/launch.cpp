#include "cuda/fused_moe/launch.hpp"

#include <array>
#include <cstddef>
#include <utility>

#include "core/fused_moe.hpp"
#include "cuda/fused_experts/launch.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/select_experts/launch.hpp"

namespace tessera::cuda {
namespace {

core::Implementation selection() {
  return core::implementation<core::SelectExpertsProblem, run_select_experts, nullptr,
                              select_experts_refusal>("cuda/select_experts");
}

template <std::size_t kIndex>
const core::Implementation& experts() {
  return fused_experts_implementations()[kIndex];
}

template <std::size_t... kIndices>
std::array<core::Implementation, sizeof...(kIndices)> all(std::index_sequence<kIndices...>) {
  return {core::FusedMoe<selection, experts<kIndices>>::descriptor()...};
}

}  // namespace

std::span<const core::Implementation> fused_moe_implementations() {
  static const auto implementations = all(std::make_index_sequence<kNumProductStrategies>());
  return implementations;
}

}  // namespace tessera::cuda
