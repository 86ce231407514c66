#include "cuda/align_block_size/launch.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "cuda/align_block_size/kernels.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {
namespace {

using core::AlignBlockSizeProblem;

constexpr std::string_view kOp = "align_block_size";

/// How the kernel of a strategy is launched.
struct StrategyKernel {
  const void* (*find)(const Instance& instance);
  bool needs_shared_memory;  ///< dynamic
  bool is_cluster;
  bool is_cooperative;  ///< CTAs wait for each other: either all of them run at once, or none
};

// clang-format off
constexpr std::array<StrategyKernel, kNumStrategies> kStrategyKernels{{
    // find                              shared  cluster cooperative
    {align_block_size_few_kernel,        false,  false,  false},
    {align_block_size_one_cta_kernel,    true,   false,  false},
    {align_block_size_redundant_kernel,  true,   false,  false},
    {align_block_size_cluster_kernel,    true,   true,   false},
    {align_block_size_grid_kernel,       true,   false,  true},
    {align_block_size_wide_kernel,       false,  false,  true},
}};
// clang-format on

/// The numbers of threads that kernels have instances for.
constexpr std::array<int, 5> kThreadCounts{64, 128, 256, 512, 1024};

const StrategyKernel& strategy_kernel(Strategy strategy) {
  return kStrategyKernels[static_cast<std::size_t>(strategy)];
}

bool is_extended(const AlignBlockSizeProblem& problem, Strategy strategy) {
  return problem.filtered_group || problem.map_tail || problem.statistics != nullptr ||
         problem.validation != nullptr || problem.slots_of_ids != nullptr ||
         (strategy == Strategy::kGrid && problem.num_dropped != nullptr);
}

/// The number of CTAs that a launch adds to its plan: a reporter, or a cluster with one. None for a
/// cooperative grid, which fills the device and reports itself.
int num_reporters(const Plan& plan, const AlignBlockSizeProblem& problem) {
  if (problem.statistics == nullptr && problem.validation == nullptr) return 0;
  const StrategyKernel& kernel = strategy_kernel(plan.strategy);
  if (kernel.is_cooperative) return 0;
  return kernel.is_cluster ? plan.num_ctas : 1;
}

/// The requirements of an instance. Its function is null if there is no such instance.
Kernel kernel_of(Strategy strategy, const Instance& instance) {
  static PreparedContexts prepared[kNumStrategies][kNumIdWidths][kThreadCounts.size()][2];
  const auto threads = std::ranges::find(kThreadCounts, instance.num_threads);
  if (threads == kThreadCounts.end()) return {};
  auto& of_width = prepared[static_cast<int>(strategy)][static_cast<int>(instance.width)];
  const StrategyKernel& kernel = strategy_kernel(strategy);
  return {.function = kernel.find(instance),
          .needs_shared_memory = kernel.needs_shared_memory,
          .static_shared_bytes = kStaticSharedBytes,
          .needs_large_clusters = kernel.is_cluster,
          .prepared = &of_width[threads - kThreadCounts.begin()][instance.is_extended ? 1 : 0]};
}

/// Sets the arguments that turn ids into buckets.
void set_buckets(const AlignBlockSizeProblem& problem, AlignBlockSizeExtendedArgs* args) {
  AlignBlockSizeKernelArgs& base = args->base;
  args->id_is_signed = problem.id_dtype.code == kDLInt;
  args->first_expert = problem.filtered_group ? 1 : 0;
  // No unsigned id is -1, so they need no bias, but the bucket of -1 precedes theirs, too.
  args->id_bias = args->id_is_signed ? args->first_expert : 0;
  args->id_shift = args->first_expert - args->id_bias;
  base.id_limit = base.num_experts + args->id_bias;
  if (problem.id_dtype.bits < 32) {
    args->id_mask = (std::uint32_t{1} << problem.id_dtype.bits) - 1;
    // A negative number of few bits, read as unsigned, could pass for an expert.
    const int value_bits = problem.id_dtype.bits - (args->id_is_signed ? 1 : 0);
    base.id_limit = std::min(base.id_limit, (std::uint32_t{1} << value_bits) + args->id_bias);
  }
}

}  // namespace

IdWidth width_of(DLDataType dtype) {
  return dtype.bits == 64 ? IdWidth::k64 : dtype.bits == 32 ? IdWidth::k32 : IdWidth::kNarrow;
}

AlignBlockSizeExtendedArgs problem_args(const AlignBlockSizeProblem& problem) {
  AlignBlockSizeExtendedArgs args{};
  AlignBlockSizeKernelArgs& base = args.base;
  base.topk_ids = problem.topk_ids;
  base.num_ids = problem.num_ids;
  base.id_bytes = problem.id_dtype.bits / 8;
  base.num_experts = problem.num_experts;
  set_buckets(problem, &args);
  base.expert_map = problem.expert_map;
  base.drops_remote = problem.drops_remote;
  base.tail_expert = problem.tail_expert;
  args.map_tail = problem.map_tail;
  base.block_size = problem.block_size;
  base.block_division = division_by(problem.block_size);
  base.sorted_token_ids = problem.sorted_token_ids;
  base.sorted_token_ids_length = problem.sorted_token_ids_length;
  base.last_slot = static_cast<std::uint32_t>(std::min(
      problem.sorted_token_ids_length - 1, std::int64_t{std::numeric_limits<std::int32_t>::max()}));
  base.expert_ids = problem.expert_ids;
  base.expert_ids_length = problem.expert_ids_length;
  base.num_tokens_post_pad = problem.num_tokens_post_pad;
  base.expert_counts = problem.expert_counts;
  base.num_dropped = problem.num_dropped;
  args.reciprocal_of_experts = 1.0 / problem.num_experts;
  args.statistics = problem.statistics;
  args.validation = problem.validation;
  args.slots_of_ids = problem.slots_of_ids;
  return args;
}

namespace {

/// The arguments of an extended instance; a plain one reads only the leading part.
AlignBlockSizeExtendedArgs kernel_args(const Plan& plan, const AlignBlockSizeProblem& problem,
                                       const Context& context) {
  AlignBlockSizeExtendedArgs args = problem_args(problem);
  args.base.ids_per_thread = plan.ids_per_thread;
  args.base.ids_per_cta = plan.ids_per_cta;
  args.base.fills_first = plan.fills_first;
  // The workspace that the size query asks for has room for the alignment.
  const auto misalignment =
      reinterpret_cast<std::uintptr_t>(context.workspace.data()) % kWorkspaceAlignment;
  args.base.workspace =
      context.workspace.data() + (misalignment == 0 ? 0 : kWorkspaceAlignment - misalignment);
  return args;
}

}  // namespace

Status launch(const Plan& plan, const AlignBlockSizeProblem& problem, const Context& context) {
  const Instance instance{width_of(problem.id_dtype), plan.num_threads,
                          is_extended(problem, plan.strategy)};
  Launch launch{kernel_of(plan.strategy, instance), plan.num_ctas + num_reporters(plan, problem),
                plan.num_threads, plan.shared_bytes};
  if (strategy_kernel(plan.strategy).is_cluster) launch.cluster_size = plan.num_ctas;
  launch.is_cooperative = strategy_kernel(plan.strategy).is_cooperative;
  AlignBlockSizeExtendedArgs args = kernel_args(plan, problem, context);
  return launch_kernel(kOp, launch, &args, context, [&] {
    return std::string("cuda/") + name_of(plan.strategy) + " to start for " +
           std::to_string(problem.num_ids) + " ids, " + std::to_string(problem.num_experts) +
           " experts, block_size " + std::to_string(problem.block_size) + " (" + to_string(plan) +
           ")";
  });
}

namespace {

/// The policy's view of a problem: kernels treat groups as experts.
AlignBlockSizeShape by_groups(const AlignBlockSizeProblem& problem) {
  return {problem.num_ids, problem.block_size, core::num_groups(problem)};
}

/// The policy's choice for the whole device. The last one is kept: a call asks for it several
/// times, and the next call often has the same shape.
const Choice& choice_on_device(const AlignBlockSizeShape& shape, const Context& context) {
  struct Last {
    AlignBlockSizeShape shape;
    int device_id = -1;
    Choice choice;
  };
  thread_local Last last;
  if (last.device_id != context.device.device_id || last.shape.num_ids != shape.num_ids ||
      last.shape.block_size != shape.block_size || last.shape.num_experts != shape.num_experts) {
    last = {shape, context.device.device_id,
            choose(shape, properties_of(context.device.device_id))};
  }
  return last.choice;
}

/// The policy's choice for the multiprocessors that the context's stream may use.
Choice choice_for(const AlignBlockSizeShape& shape, const Context& context) {
  const Choice& choice = choice_on_device(shape, context);
  if (!needs_all_ctas_at_once(choice.plan.strategy)) return choice;
  const DeviceProperties device = properties_in(context);
  return device.is_partitioned() ? choose(shape, device) : choice;
}

Plan plan_of(Strategy strategy, const AlignBlockSizeShape& shape, const Context& context) {
  const Choice choice = choice_for(shape, context);
  if (choice.plan.strategy == strategy) return choice.plan;
  return plan_for(strategy, shape, properties_in(context));
}

template <Strategy kStrategy>
struct StrategyImplementation {
  static std::size_t workspace_bytes(const AlignBlockSizeProblem& problem, const Context& context) {
    const AlignBlockSizeShape shape = by_groups(problem);
    const Choice choice = choice_for(shape, context);
    if (choice.plan.strategy == kStrategy)
      return align_block_size_workspace_bytes(problem, context);
    return plan_for(kStrategy, shape, properties_in(context)).workspace_bytes;
  }

  static Status run(const AlignBlockSizeProblem& problem, const Context& context) {
    return launch(plan_of(kStrategy, by_groups(problem), context), problem, context);
  }

  static Status refusal(const AlignBlockSizeProblem& problem, const Context& context, bool forced) {
    static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                                 "the policy picks another for this shape"};
    const AlignBlockSizeShape shape = by_groups(problem);
    if (choice_for(shape, context).plan.strategy == kStrategy) return {};
    if (!forced) return Status(&kNotPreferred);
    const char* reason = limitation(kStrategy, shape, properties_in(context));
    return reason == nullptr ? Status() : Status(StatusCode::kUnsupported, reason);
  }

  static std::string plan(const AlignBlockSizeProblem& problem, const Context& context) {
    const AlignBlockSizeShape shape = by_groups(problem);
    return to_string(plan_of(kStrategy, shape, context)) +
           (choice_for(shape, context).is_measured
                ? ""
                : "; a conservative choice: the policy was never measured on such a device");
  }

  static constexpr core::Implementation descriptor(std::string_view name) {
    return core::implementation<AlignBlockSizeProblem, run, workspace_bytes, refusal, plan>(name);
  }
};

}  // namespace

std::span<const core::Implementation> align_block_size_implementations() {
  static constexpr std::array<core::Implementation, kNumStrategies> kAll{
      StrategyImplementation<Strategy::kFew>::descriptor("cuda/few"),
      StrategyImplementation<Strategy::kOneCta>::descriptor("cuda/one_cta"),
      StrategyImplementation<Strategy::kRedundant>::descriptor("cuda/redundant"),
      StrategyImplementation<Strategy::kCluster>::descriptor("cuda/cluster"),
      StrategyImplementation<Strategy::kGrid>::descriptor("cuda/grid"),
      StrategyImplementation<Strategy::kWide>::descriptor("cuda/wide"),
  };
  return kAll;
}

Status run_align_block_size(const AlignBlockSizeProblem& problem, const Context& context) {
  return launch(choice_for(by_groups(problem), context).plan, problem, context);
}

std::size_t align_block_size_workspace_bytes(const AlignBlockSizeProblem& problem,
                                             const Context& context) {
  // The same for every stream, as the size query does not know the stream of the call.
  return choice_on_device(by_groups(problem), context).plan.workspace_bytes;
}

Status load_align_block_size_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context) {
  const int capability = properties_of(device_id).code_capability;
  for (int i = 0; i < kNumStrategies; ++i) {
    const auto strategy = static_cast<Strategy>(i);
    if (strategy_kernel(strategy).is_cluster && capability < 90) continue;
    for (int width = 0; width < kNumIdWidths; ++width) {
      for (const int num_threads : kThreadCounts) {
        // An extended instance is loaded by the first call that needs it.
        const Kernel kernel =
            kernel_of(strategy, {static_cast<IdWidth>(width), num_threads, false});
        if (kernel.function == nullptr) continue;
        if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
          return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                              std::string("cuda/") + name_of(strategy) + " to load",
                              text_of(error));
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
