#include "cuda/quantize_fp8/launch.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/quantize_fp8_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/quantize_fp8/kernel.hpp"

namespace tessera::cuda {
namespace {

using core::QuantizeFp8Problem;

constexpr std::string_view kOp = "quantize_fp8";

Kernel kernel_for(QuantizeFp8Kernel kernel, QuantizeFp8Type type, bool has_vectors) {
  using OfType = std::array<PreparedContexts, 2>;
  static std::array<std::array<OfType, kNumQuantizeFp8Types>, kNumQuantizeFp8Kernels> prepared;
  return {.function = quantize_fp8_kernel(kernel, type, has_vectors),
          .prepared = &prepared[static_cast<std::size_t>(kernel)][static_cast<std::size_t>(type)]
                               [has_vectors ? 1 : 0]};
}

/// Whether a kernel before the other finds the largest magnitudes.
bool takes_two_kernels(const QuantizeFp8Problem& p) {
  return p.group == Fp8Group::kTensor && p.scale == nullptr && p.num_tokens * p.hidden_size > 0;
}

std::size_t workspace_bytes(const QuantizeFp8Problem& problem, const Context&) {
  if (!takes_two_kernels(problem)) return 0;
  // One number per CTA of any plan, at an address of its alignment: the size may not depend on the
  // addresses of arrays, on which the plan does.
  return (kQuantizeFp8TensorCtas + 1) * sizeof(std::uint32_t);
}

std::uint32_t* aligned(std::byte* memory) {
  const std::size_t past = reinterpret_cast<std::uintptr_t>(memory) % sizeof(std::uint32_t);
  return reinterpret_cast<std::uint32_t*>(memory +
                                          (sizeof(std::uint32_t) - past) % sizeof(std::uint32_t));
}

}  // namespace

Status run_quantize_fp8(const QuantizeFp8Problem& problem, const Context& context,
                        const QuantizeFp8Rows& rows) {
  const QuantizeFp8Plan plan = plan_quantize_fp8(problem);
  // The one scale of no elements is written, too.
  const std::int64_t num_ctas =
      problem.group == Fp8Group::kTensor ? std::max<std::int64_t>(plan.num_ctas, 1) : plan.num_ctas;
  if (num_ctas == 0) return {};
  QuantizeFp8KernelArgs args{};
  args.x = problem.x;
  args.scale = problem.scale;
  args.values = problem.values;
  args.scales = problem.scales;
  args.rows = rows;
  args.use_ue8m0 = problem.use_ue8m0;
  args.words_per_row = plan.words_per_row;
  args.threads_per_row = plan.threads_per_row;
  args.parts_per_row = std::max(plan.parts_per_row, 1U);
  args.num_parts = plan.num_parts;
  args.num_tokens = problem.num_tokens;
  args.grid_columns = problem.grid_columns();
  if (problem.group == Fp8Group::k1x128) {
    args.groups_per_row = division_by(static_cast<std::int32_t>(args.grid_columns));
  }
  args.x_stride = problem.x_stride * (problem.dtype.bits / 8);
  args.values_stride = problem.values_stride;
  const auto launch = [&](QuantizeFp8Kernel kernel) {
    const Launch launch{kernel_for(kernel, plan.type, plan.has_vectors), static_cast<int>(num_ctas),
                        kQuantizeFp8Threads, 0};
    return launch_kernel(kOp, launch, &args, context, [&] {
      return std::to_string(num_ctas) + " CTAs to start for " + std::to_string(problem.num_tokens) +
             " tokens, hidden size " + std::to_string(problem.hidden_size);
    });
  };
  if (takes_two_kernels(problem)) {
    args.largest = aligned(context.workspace.data());
    args.num_largest = static_cast<std::int32_t>(num_ctas);
    if (Status s = launch(QuantizeFp8Kernel::kLargest); !s.ok()) return s;
  }
  return launch(plan.kernel);
}

namespace {

Status run(const QuantizeFp8Problem& problem, const Context& context) {
  return run_quantize_fp8(problem, context, {});
}

}  // namespace

std::span<const core::Implementation> quantize_fp8_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<QuantizeFp8Problem, run, workspace_bytes>("cuda/groups"),
  };
  return kAll;
}

Status load_quantize_fp8_kernels(std::string_view op, int device_id,
                                 const CurrentContext& context) {
  for (int kernel = 0; kernel < kNumQuantizeFp8Kernels; ++kernel) {
    for (int type = 0; type < kNumQuantizeFp8Types; ++type) {
      for (const bool has_vectors : {false, true}) {
        const Kernel loaded = kernel_for(static_cast<QuantizeFp8Kernel>(kernel),
                                         static_cast<QuantizeFp8Type>(type), has_vectors);
        if (const cudaError_t error = prepare_kernel(loaded, device_id, context)) {
          return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/groups to load",
                              text_of(error));
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
