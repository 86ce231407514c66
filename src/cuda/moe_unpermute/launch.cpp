#include "cuda/moe_unpermute/launch.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "core/moe_unpermute_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/moe_unpermute/kernel.hpp"

namespace tessera::cuda {
namespace {

using core::MoeUnpermuteProblem;

constexpr std::string_view kOp = "moe_unpermute";

Kernel kernel_for(MoeSumType type, MoeUnpermuteAccess access) {
  static std::array<std::array<PreparedContexts, kNumMoeUnpermuteAccesses>, kNumMoeSumTypes>
      prepared;
  return {.function = moe_unpermute_kernel(type, access),
          .prepared = &prepared[static_cast<std::size_t>(type)][static_cast<std::size_t>(access)]};
}

MoeUnpermuteAccess access_of(const MoeSumPlan& plan, std::int64_t top_k) {
  if (!plan.has_vectors) return MoeUnpermuteAccess::kElements;
  return top_k <= kMoeUnpermuteFewSlots ? MoeUnpermuteAccess::kVectorsOfFewSlots
                                        : MoeUnpermuteAccess::kVectors;
}

Status refusal(const MoeUnpermuteProblem& problem, const Context&, bool) {
  constexpr std::int64_t kMaxCtas = std::numeric_limits<std::int32_t>::max();
  const std::int64_t num_ctas = plan_moe_unpermute(problem).num_ctas;
  if (num_ctas <= kMaxCtas) return {};
  return core::refuse(StatusCode::kUnsupported, kOp, "output.shape",
                      "rows that a grid of " + std::to_string(kMaxCtas) + " CTAs can sum",
                      "rows for " + std::to_string(num_ctas));
}

Status run(const MoeUnpermuteProblem& problem, const Context& context) {
  const MoeSumPlan plan = plan_moe_unpermute(problem);
  if (plan.num_ctas == 0) return {};
  const std::int64_t element_bytes = problem.dtype.bits / 8;
  MoeUnpermuteKernelArgs args{};
  args.rows = problem.rows;
  args.topk_weights = problem.topk_weights;
  args.inverse = problem.inverse;
  args.output = problem.output;
  args.top_k = static_cast<std::int32_t>(problem.top_k);
  args.num_rows = static_cast<std::uint32_t>(problem.num_rows);
  args.words_per_row = plan.words_per_row;
  args.ctas_per_row = plan.ctas_per_row;
  args.row_stride = problem.row_stride * element_bytes;
  args.output_stride = problem.output_stride * element_bytes;
  const Launch launch{kernel_for(plan.type, access_of(plan, problem.top_k)),
                      static_cast<int>(plan.num_ctas), kMoeSumThreads, 0};
  return launch_kernel(kOp, launch, &args, context, [&] {
    return std::to_string(plan.num_ctas) + " CTAs to start for " +
           std::to_string(problem.num_tokens) + " tokens, top_k " + std::to_string(problem.top_k) +
           ", hidden size " + std::to_string(problem.hidden_size);
  });
}

}  // namespace

std::span<const core::Implementation> moe_unpermute_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<MoeUnpermuteProblem, run, nullptr, refusal>("cuda/rows"),
  };
  return kAll;
}

Status load_moe_unpermute_kernels(std::string_view op, int device_id,
                                  const CurrentContext& context) {
  for (int type = 0; type < kNumMoeSumTypes; ++type) {
    for (int access = 0; access < kNumMoeUnpermuteAccesses; ++access) {
      const Kernel kernel =
          kernel_for(static_cast<MoeSumType>(type), static_cast<MoeUnpermuteAccess>(access));
      if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
        return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/rows to load",
                            text_of(error));
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
