// How the kernels of select_and_align are launched, and for which problems. A pure function of
// problem and device in host code, so that it can be tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/select_and_align_problem.hpp"
#include "cuda/device_properties.hpp"
#include "cuda/select_and_align/kernel.hpp"

namespace tessera::cuda {

enum class SelectAndAlignStrategy { kOneCta, kCluster };
inline constexpr int kNumSelectAndAlignStrategies = 2;

struct SelectAndAlignPlan {
  SelectAndAlignInstance instance;
  int num_threads;
  int num_ctas;
  int tokens_per_cta;
  int ids_per_thread;
  std::size_t blocks_memory;  ///< where the alignment's part of the shared memory begins
  std::size_t shared_bytes;
};

/// The plan of a strategy that can run a problem, with the arguments of its selection.
SelectAndAlignPlan plan_select_and_align(SelectAndAlignStrategy strategy,
                                         const SelectExpertsKernelArgs& selection);

/// Why a strategy cannot run a problem; null if it can.
const char* limitation(SelectAndAlignStrategy strategy, const core::SelectAndAlignProblem& problem,
                       const SelectExpertsKernelArgs& selection, const DeviceProperties& device);

/// Whether a strategy that can run a problem is faster than the ones after it.
bool is_preferred(SelectAndAlignStrategy strategy, const core::SelectAndAlignProblem& problem);

/// "8 CTAs of 512 threads, 2 tokens each, 37760 bytes of dynamic shared memory"
std::string to_string(const SelectAndAlignPlan& plan);

}  // namespace tessera::cuda
