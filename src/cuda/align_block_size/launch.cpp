#include "cuda/align_block_size/launch.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "cuda/align_block_size/kernels.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {
namespace {

using core::AlignBlockSizeProblem;

constexpr std::string_view kOp = "align_block_size";

/// Which instance of a strategy's kernel.
struct Instance {
  Strategy strategy;
  IdWidth width;
  int num_threads;
  bool is_extended;
};

bool is_extended(const AlignBlockSizeProblem& problem, Strategy strategy) {
  return problem.filtered_group || problem.map_tail || problem.statistics != nullptr ||
         problem.validation != nullptr ||
         (strategy == Strategy::kGrid && problem.num_dropped != nullptr);
}

/// CTAs that only report: one, or a cluster of which one does; none beside a grid, which fills the
/// device.
int num_reporters(const Plan& plan, const AlignBlockSizeProblem& problem) {
  if (problem.statistics == nullptr && problem.validation == nullptr) return 0;
  switch (plan.strategy) {
    case Strategy::kFew:
    case Strategy::kOneCta:
    case Strategy::kRedundant:
      return 1;
    case Strategy::kCluster:
      return plan.num_ctas;
    case Strategy::kGrid:
    case Strategy::kWide:
      return 0;
  }
  return 0;
}

const void* find_kernel(const Instance& instance) {
  using Find = const void* (*)(IdWidth, int, bool);
  constexpr std::array<Find, kNumStrategies> kFind{
      align_block_size_few_kernel,       align_block_size_one_cta_kernel,
      align_block_size_redundant_kernel, align_block_size_cluster_kernel,
      align_block_size_grid_kernel,      align_block_size_wide_kernel};
  return kFind[static_cast<std::size_t>(instance.strategy)](instance.width, instance.num_threads,
                                                            instance.is_extended);
}

/// An instance's kernel; without a function where there is none.
Kernel kernel_of(const Instance& instance) {
  constexpr std::size_t kSizes = 3;  // up to 256, 512 and 1024 threads
  static std::array<PreparedContexts, kSizes * 2 * kNumStrategies * kNumIdWidths> prepared;
  auto index = static_cast<std::size_t>(instance.strategy);
  index = index * kNumIdWidths + static_cast<std::size_t>(instance.width);
  index = index * kSizes + instance.num_threads / 512;
  return {.function = find_kernel(instance),
          .needs_shared_memory =
              instance.strategy != Strategy::kFew && instance.strategy != Strategy::kWide,
          .needs_large_clusters = instance.strategy == Strategy::kCluster,
          .prepared = &prepared[2 * index + (instance.is_extended ? 1 : 0)]};
}

/// How ids become buckets.
void set_buckets(const AlignBlockSizeProblem& problem, AlignBlockSizeExtendedArgs* args) {
  args->id_is_signed = problem.id_dtype.code == kDLInt;
  args->first_expert = problem.filtered_group ? 1 : 0;
  // No unsigned id is -1: they need no bias, but their buckets start behind that of -1, too.
  args->id_bias = args->id_is_signed ? args->first_expert : 0;
  args->id_shift = args->first_expert - args->id_bias;
  args->id_limit = args->num_experts + args->id_bias;
  if (problem.id_dtype.bits < 32) {
    args->id_mask = (std::uint32_t{1} << problem.id_dtype.bits) - 1;
    // Read as unsigned, a negative number of few bits could pass for an expert.
    const int value_bits = problem.id_dtype.bits - (args->id_is_signed ? 1 : 0);
    args->id_limit = std::min(args->id_limit, (std::uint32_t{1} << value_bits) + args->id_bias);
  }
}

}  // namespace

IdWidth width_of(DLDataType dtype) {
  return dtype.bits == 64 ? IdWidth::k64 : dtype.bits == 32 ? IdWidth::k32 : IdWidth::kNarrow;
}

AlignBlockSizeExtendedArgs problem_args(const AlignBlockSizeProblem& problem) {
  AlignBlockSizeExtendedArgs args{};
  args.topk_ids = problem.topk_ids;
  args.num_ids = problem.num_ids;
  args.id_bytes = problem.id_dtype.bits / 8;
  args.num_experts = problem.num_experts;
  set_buckets(problem, &args);
  args.expert_map = problem.expert_map;
  args.drops_remote = problem.drops_remote;
  args.tail_expert = problem.tail_expert;
  args.map_tail = problem.map_tail;
  args.block_size = problem.block_size;
  args.block_division = division_by(problem.block_size);
  args.sorted_token_ids = problem.sorted_token_ids;
  args.sorted_token_ids_length = problem.sorted_token_ids_length;
  args.last_slot = static_cast<std::uint32_t>(std::min(
      problem.sorted_token_ids_length - 1, std::int64_t{std::numeric_limits<std::int32_t>::max()}));
  args.expert_ids = problem.expert_ids;
  args.expert_ids_length = problem.expert_ids_length;
  args.num_tokens_post_pad = problem.num_tokens_post_pad;
  args.expert_counts = problem.expert_counts;
  args.num_dropped = problem.num_dropped;
  args.reciprocal_of_experts = 1.0 / problem.num_experts;
  args.statistics = problem.statistics;
  args.validation = problem.validation;
  return args;
}

namespace {

/// Those of the extended instances, of which the plain ones take the first part.
AlignBlockSizeExtendedArgs kernel_args(const Plan& plan, const AlignBlockSizeProblem& problem,
                                       const Context& context) {
  AlignBlockSizeExtendedArgs args = problem_args(problem);
  args.ids_per_thread = plan.ids_per_thread;
  args.ids_per_cta = plan.ids_per_cta;
  args.fills_first = plan.fills_first;
  // The size query has room for this.
  const auto misalignment =
      reinterpret_cast<std::uintptr_t>(context.workspace.data()) % kWorkspaceAlignment;
  args.workspace =
      context.workspace.data() + (misalignment == 0 ? 0 : kWorkspaceAlignment - misalignment);
  return args;
}

}  // namespace

Status launch(const Plan& plan, const AlignBlockSizeProblem& problem, const Context& context) {
  const Instance instance{plan.strategy, width_of(problem.id_dtype), plan.num_threads,
                          is_extended(problem, plan.strategy)};
  Launch launch{kernel_of(instance), plan.num_ctas + num_reporters(plan, problem), plan.num_threads,
                plan.shared_bytes};
  if (plan.strategy == Strategy::kCluster) launch.cluster_size = plan.num_ctas;
  // All CTAs run at once or none does, whatever else the device is doing: they wait for each other.
  launch.is_cooperative = plan.strategy == Strategy::kGrid || plan.strategy == Strategy::kWide;
  AlignBlockSizeExtendedArgs args = kernel_args(plan, problem, context);
  return launch_kernel(kOp, launch, &args, context, [&] {
    return std::string("cuda/") + name_of(plan.strategy) + " to start for " +
           std::to_string(problem.num_ids) + " ids, " + std::to_string(problem.num_experts) +
           " experts, block_size " + std::to_string(problem.block_size) + " (" + to_string(plan) +
           ")";
  });
}

namespace {

/// As the policy sees a problem: the kernels take a group for an expert.
AlignBlockSizeShape by_groups(const AlignBlockSizeProblem& problem) {
  return {problem.num_ids, problem.block_size, core::num_groups(problem)};
}

/// The policy's choice for a whole device. A call asks for it several times, a layer for the same
/// shapes again.
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
    if (choice.plan.strategy != kStrategy) {
      return plan_for(kStrategy, shape, properties_in(context)).workspace_bytes;
    }
    // The same for every stream: the size query need not know on which one the call will be.
    return choice_on_device(shape, context).plan.workspace_bytes;
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

Status load_align_block_size_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context) {
  const int capability = properties_of(device_id).code_capability;
  for (int strategy = 0; strategy < kNumStrategies; ++strategy) {
    if (static_cast<Strategy>(strategy) == Strategy::kCluster && capability < 90) continue;
    for (int width = 0; width < kNumIdWidths; ++width) {
      for (const int num_threads : {256, 512, 1024}) {
        // The extended ones are loaded when a call first asks for what they do.
        const Instance instance{static_cast<Strategy>(strategy), static_cast<IdWidth>(width),
                                num_threads, false};
        const Kernel kernel = kernel_of(instance);
        if (kernel.function == nullptr) continue;
        if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
          return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                              std::string("cuda/") + name_of(instance.strategy) + " to load",
                              text_of(error));
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
