#include "cuda/fused_experts/launch.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/fused_experts_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/fused_experts/chunk.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/fused_experts/prepared_kernels.hpp"

namespace tessera::cuda {
namespace {

using core::FusedExpertsProblem;

template <ProductStrategy kStrategy>
struct StrategyImplementation {
  /// Enough for what the policy picks instead if the weights are transposed or no whole words, too:
  /// the size query does not know strides and addresses.
  static std::size_t workspace_bytes(const FusedExpertsProblem& problem, const Context& context) {
    if (problem.num_tokens == 0) return 0;
    const std::int64_t length = tokens_per_chunk(problem);
    std::size_t bytes = 0;
    const auto include = [&](ProductStrategy strategy) {
      for (const std::int64_t num_tokens : {length, problem.num_tokens % length}) {
        if (num_tokens == 0) continue;
        const Chunk chunk(problem, 0, num_tokens, strategy, context);
        bytes = std::max(bytes, chunk.workspace_bytes());
      }
    };
    include(kStrategy);
    if (kStrategy != kElementsTile) include(kElementsTile);
    if (is_for_90a(kStrategy)) include(choose_strategy(problem, /*has_wgmma=*/false));
    return bytes;
  }

  static Status run(const FusedExpertsProblem& problem, const Context& context) {
    const std::int64_t length = tokens_per_chunk(problem);
    for (std::int64_t first = 0; first < problem.num_tokens; first += length) {
      const std::int64_t num_tokens = std::min(length, problem.num_tokens - first);
      if (Status s = Chunk(problem, first, num_tokens, kStrategy, context).run(); !s.ok()) return s;
    }
    return {};
  }

  static Status refusal(const FusedExpertsProblem& problem, const Context& context, bool forced) {
    static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                                 "the policy picks another for this shape"};
    const bool on_hopper = has_wgmma(context.device.device_id);
    if (is_for_90a(kStrategy) && !on_hopper) {
      return Status(StatusCode::kUnsupported,
                    "needs compute capability 9.0, and code for 9.0a in this build");
    }
    const char* reason = limitation(kStrategy, problem);
    if (reason != nullptr) return Status(StatusCode::kUnsupported, reason);
    return forced || choose_strategy(problem, on_hopper) == kStrategy ? Status()
                                                                      : Status(&kNotPreferred);
  }

  static std::string plan(const FusedExpertsProblem& problem, const Context&) {
    return describe_plan(kStrategy, problem);
  }

  static constexpr core::Implementation descriptor(std::string_view name) {
    return core::implementation<FusedExpertsProblem, run, workspace_bytes, refusal, plan>(name);
  }
};

}  // namespace

std::span<const core::Implementation> fused_experts_implementations() {
  static constexpr std::array<core::Implementation, kNumProductStrategies> kAll{
      StrategyImplementation<kSwapAb>::descriptor("cuda/swap_ab_32"),
      StrategyImplementation<kWgmma>::descriptor("cuda/wgmma_128"),
      StrategyImplementation<0>::descriptor("cuda/mma_16"),
      StrategyImplementation<1>::descriptor("cuda/mma_32"),
      StrategyImplementation<2>::descriptor("cuda/mma_64"),
      StrategyImplementation<3>::descriptor("cuda/mma_128"),
  };
  return kAll;
}

}  // namespace tessera::cuda
