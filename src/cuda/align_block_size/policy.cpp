#include "cuda/align_block_size/policy.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/align_block_size/layout.hpp"

namespace tessera::cuda {
namespace {

constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();

/// A launch for the shapes up to these bounds that the strategy can run.
struct Rule {
  std::int64_t max_ids;
  std::int64_t max_experts;
  LaunchParameters launch;
};

/// Measured on an NVIDIA H200 by bench/tune_policy.cpp; the figures are in
/// bench/results/h200/policy.json. The first rule that can run a shape applies.
constexpr std::array kHopperRules{
    Rule{32, kAny, {Strategy::kFew, 256, 0, 1}},
    Rule{256, 256, {Strategy::kOneCta, 256, 0, 1}},
    Rule{256, kAny, {Strategy::kOneCta, 512, 0, 1}},
    Rule{512, 128, {Strategy::kOneCta, 256, 0, 1}},
    Rule{1024, 8, {Strategy::kOneCta, 256, 0, 1}},
    Rule{1024, kAny, {Strategy::kRedundant, 512, 32, 1}},
    Rule{2048, 256, {Strategy::kRedundant, 256, 64, 1}},
    Rule{2048, kAny, {Strategy::kRedundant, 256, 32, 1}},
    Rule{4096, kAny, {Strategy::kRedundant, 512, 128, 1}},
    Rule{8192, 64, {Strategy::kCluster, 256, 512, 1}},
    Rule{8192, kAny, {Strategy::kRedundant, 512, 256, 1}},
    Rule{16384, 128, {Strategy::kCluster, 256, 1024, 1}},
    Rule{16384, 256, {Strategy::kRedundant, 512, 512, 1}},
    Rule{16384, kAny, {Strategy::kRedundant, 512, 256, 1}},
    Rule{32768, kAny, {Strategy::kGrid, 512, 512, 1}},
    Rule{65536, kAny, {Strategy::kGrid, 512, 1024, 1}},
    Rule{131072, kAny, {Strategy::kGrid, 512, 2048, 1}},
    Rule{262144, 256, {Strategy::kGrid, 512, 2048, 1}},
    Rule{540672, kAny, {Strategy::kGrid, 512, 4096, 1}},
    Rule{1081344, kAny, {Strategy::kGrid, 1024, 8192, 1}},
    Rule{kAny, kAny, {Strategy::kGrid, 1024, 16384, 1}},
};

/// For devices that were not measured: the strategies that depend least on the device.
constexpr std::array kConservativeRules{
    Rule{32, kAny, {Strategy::kFew, 256, 0, 1}},
    Rule{1024, kAny, {Strategy::kOneCta, 256, 0, 1}},
    Rule{262144, kAny, {Strategy::kGrid, 512, 4096, 1}},
    Rule{kAny, kAny, {Strategy::kGrid, 1024, 16384, 1}},
};

/// Applies if no rule does.
constexpr LaunchParameters kLastResort{Strategy::kWide, 256, 0, 1};

/// Above this many slots, to pad group by group after the ids is faster than to fill all slots
/// first.
constexpr std::int64_t kFillsFirstMaxSlots = 786432;

/// Slots up to which one CTA is as fast as several.
constexpr std::int64_t kFewMaxSlots = 32768;
constexpr std::int64_t kOneCtaMaxSlots = 6144;

/// CTAs of the redundant kernel by the number of slots, even if some of them get no ids: blocks,
/// padding and the tail take as long to write as ids.
std::int64_t redundant_ctas_for_slots(std::int64_t num_slots) {
  return std::min((num_slots + 1023) / 1024, std::max<std::int64_t>(32, num_slots / 8192));
}

/// Rows of counts that the wide kernel may keep in the workspace, in elements.
constexpr std::int64_t kWideMaxCounts = std::int64_t{1} << 26;

/// Whether the device is an H200 that runs code compiled for it. An H100 SXM passes, too: it
/// differs only in its memory.
bool is_measured(const DeviceProperties& device) {
  return device.compute_capability == 90 && device.code_capability == 90 && device.num_sms == 132;
}

std::span<const Rule> rules_for(const DeviceProperties& device) {
  if (is_measured(device)) return kHopperRules;
  return kConservativeRules;
}

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t num_slots(const AlignBlockSizeShape& shape) {
  return shape.num_ids + std::min(shape.num_ids, shape.num_experts) * (shape.block_size - 1);
}

const char* shared_memory_limitation(const Plan& plan, const DeviceProperties& device) {
  return plan.shared_bytes + kStaticSharedBytes <= device.max_shared_bytes
             ? nullptr
             : "needs more shared memory for this number of experts than the device has";
}

std::int64_t max_slots(Strategy strategy) {
  switch (strategy) {
    case Strategy::kFew:
      return kFewMaxSlots;
    case Strategy::kOneCta:
      return kOneCtaMaxSlots;
    default:
      return kAny;
  }
}

/// The first rule that runs `shape`, with `strategy` if that is given.
const Rule* find_rule(const AlignBlockSizeShape& shape, const DeviceProperties& device,
                      const Strategy* strategy, bool within_bounds) {
  for (const Rule& rule : rules_for(device)) {
    if (strategy != nullptr && rule.launch.strategy != *strategy) continue;
    if (within_bounds && (shape.num_ids > rule.max_ids || shape.num_experts > rule.max_experts)) {
      continue;
    }
    if (within_bounds && num_slots(shape) > max_slots(rule.launch.strategy)) continue;
    if (limitation(make_plan(rule.launch, shape, device), shape, device) == nullptr) return &rule;
  }
  return nullptr;
}

}  // namespace

const char* limitation(const Plan& plan, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device) {
  switch (plan.strategy) {
    case Strategy::kFew:
      return shape.num_ids <= kFewMaxIds ? nullptr : "takes at most 32 ids";
    case Strategy::kOneCta:
      if (shape.num_ids > std::int64_t{plan.num_threads} * kOneCtaMaxIdsPerThread) {
        return "takes at most 4 ids per thread of one CTA";
      }
      return shared_memory_limitation(plan, device);
    case Strategy::kRedundant:
      if (shape.num_ids > kRedundantMaxIds) return "takes at most 65535 ids";
      return shared_memory_limitation(plan, device);
    case Strategy::kCluster:
      if (device.compute_capability < 90) return "needs compute capability 9.0";
      if (device.code_capability < 90) return "needs code built for compute capability 9.0";
      if (device.is_partitioned()) return "needs all multiprocessors of the device";
      if (plan.num_ctas > kClusterMaxCtas || plan.ids_per_thread > kClusterMaxIdsPerThread) {
        return "takes at most 16384 ids";
      }
      return shared_memory_limitation(plan, device);
    case Strategy::kGrid:
      if (shape.num_experts >= 65535) return "takes fewer than 65535 experts";
      if (plan.num_ctas > device.available_sms ||
          plan.ids_per_thread > grid_max_ids_per_thread(plan.num_threads)) {
        return "takes at most 16 ids per thread of a grid of one CTA per multiprocessor";
      }
      return shared_memory_limitation(plan, device);
    case Strategy::kWide:
      return plan.num_ctas <= device.available_sms ? nullptr
                                                   : "needs as many multiprocessors as it has CTAs";
  }
  return nullptr;
}

Plan make_plan(const LaunchParameters& launch, const AlignBlockSizeShape& shape,
               const DeviceProperties& device) {
  Plan plan;
  plan.strategy = launch.strategy;
  plan.num_threads = launch.num_threads;
  plan.num_ctas = 1;
  plan.ids_per_cta = static_cast<int>(shape.num_ids);
  if (launch.ids_per_cta != 0) {
    plan.ids_per_cta = launch.ids_per_cta;
    plan.num_ctas =
        static_cast<int>(std::max<std::int64_t>(1, div_up(shape.num_ids, launch.ids_per_cta)));
  }
  plan.ids_per_thread = static_cast<int>(std::max<std::int64_t>(
      launch.min_ids_per_thread, div_up(plan.ids_per_cta, launch.num_threads)));
  plan.fills_first = num_slots(shape) <= kFillsFirstMaxSlots;
  const std::size_t num_groups = shape.num_experts;  // callers count the groups as experts
  switch (launch.strategy) {
    case Strategy::kFew:
      break;
    case Strategy::kOneCta:
      plan.shared_bytes = OneCtaLayout(num_groups, plan.num_threads / 32).bytes();
      break;
    case Strategy::kRedundant:
      plan.num_ctas =
          std::max(plan.num_ctas, static_cast<int>(std::min<std::int64_t>(
                                      redundant_ctas_for_slots(num_slots(shape)), device.num_sms)));
      plan.shared_bytes = RedundantLayout(num_groups, plan.ids_per_cta).bytes();
      break;
    case Strategy::kCluster:
      plan.shared_bytes = ClusterLayout(num_groups, plan.num_threads / 32).bytes();
      break;
    case Strategy::kGrid:
      plan.shared_bytes = GridLayout(num_groups, plan.num_threads, plan.ids_per_thread).bytes();
      // In a partition of the device the wide kernel runs in the same workspace, on one CTA if need
      // be.
      plan.workspace_bytes = std::max(GridWorkspace(num_groups, plan.num_ctas).bytes(),
                                      WideWorkspace(num_groups, 1).bytes());
      break;
    case Strategy::kWide: {
      plan.ids_per_thread = kWideIdsPerThread;
      const std::int64_t tile = std::int64_t{plan.num_threads} * kWideIdsPerThread;
      const std::int64_t most =
          std::clamp<std::int64_t>(kWideMaxCounts / shape.num_experts, 1, device.available_sms);
      plan.num_ctas =
          static_cast<int>(std::clamp<std::int64_t>(div_up(shape.num_ids, tile), 1, most));
      plan.ids_per_cta = static_cast<int>(div_up(shape.num_ids, plan.num_ctas));
      plan.workspace_bytes = WideWorkspace(num_groups, plan.num_ctas).bytes();
      break;
    }
  }
  // The caller's workspace may have any alignment.
  if (plan.workspace_bytes != 0) plan.workspace_bytes += kWorkspaceAlignment - 1;
  return plan;
}

namespace {

/// The plan in a partition of a device, for a shape that the whole device runs by `whole`.
Plan plan_in_partition(const Plan& whole, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device) {
  if (limitation(whole, shape, device) == nullptr) return whole;
  if (whole.strategy == Strategy::kCluster) {
    return make_plan({Strategy::kRedundant, 512, 256, 1}, shape, device);
  }
  // The wide kernel runs on as many CTAs as the workspace has room for.
  DeviceProperties used = device;
  Plan plan = make_plan(kLastResort, shape, used);
  while (plan.workspace_bytes > whole.workspace_bytes) {
    used.available_sms = plan.num_ctas - 1;
    plan = make_plan(kLastResort, shape, used);
  }
  return plan;
}

}  // namespace

Choice choose(const AlignBlockSizeShape& shape, const DeviceProperties& device) {
  DeviceProperties whole_device = device;
  whole_device.available_sms = device.num_sms;
  const Rule* const rule = find_rule(shape, whole_device, nullptr, true);
  const Plan whole = make_plan(rule == nullptr ? kLastResort : rule->launch, shape, whole_device);
  return {plan_in_partition(whole, shape, device), is_measured(device) && !device.is_partitioned()};
}

const char* limitation(Strategy strategy, const AlignBlockSizeShape& shape,
                       const DeviceProperties& device) {
  return limitation(plan_for(strategy, shape, device), shape, device);
}

Plan plan_for(Strategy strategy, const AlignBlockSizeShape& shape, const DeviceProperties& device) {
  const Rule* rule = find_rule(shape, device, &strategy, true);
  if (rule == nullptr) rule = find_rule(shape, device, &strategy, false);
  if (rule != nullptr) return make_plan(rule->launch, shape, device);
  switch (strategy) {
    case Strategy::kRedundant:
      return make_plan({strategy, 256, 256, 1}, shape, device);
    case Strategy::kCluster:
      return make_plan({strategy, 256, 1024, 1}, shape, device);
    case Strategy::kGrid:
      return make_plan({strategy, 512, 4096, 1}, shape, device);
    default:
      return make_plan({strategy, 256, 0, 1}, shape, device);
  }
}

std::string to_string(const Plan& plan) {
  const auto counted = [](std::size_t count, const std::string& noun) {
    return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
  };
  return std::string(name_of(plan.strategy)) + ": " + counted(plan.num_ctas, "CTA") + " of " +
         std::to_string(plan.num_threads) + " threads, " + counted(plan.ids_per_cta, "id") +
         " each, " + std::to_string(plan.shared_bytes) + " bytes of dynamic shared memory";
}

const char* name_of(Strategy strategy) {
  constexpr std::array<const char*, kNumStrategies> kNames{"few",     "one_cta", "redundant",
                                                           "cluster", "grid",    "wide"};
  return kNames[static_cast<int>(strategy)];
}

}  // namespace tessera::cuda
