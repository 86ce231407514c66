// How every op launches its kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "cuda/driver.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// For each device the id of the context in which a kernel was last made ready to be launched. The
/// settings that this takes belong to a context, which a reset replaces.
using PreparedContexts = std::array<std::atomic<std::uint64_t>, kMaxDevices>;

/// A kernel, and what the runtime has to be told of it.
struct Kernel {
  const void* function;
  bool needs_shared_memory = false;   ///< dynamic, as much of it as the device has
  bool needs_large_clusters = false;  ///< of more CTAs than every device can run
  PreparedContexts* prepared;         ///< lives as long as the process
};

/// Loads a kernel's code into the current context, which is one of the device, and asks for what it
/// needs, unless both are done.
cudaError_t prepare_kernel(const Kernel& kernel, int device_id, const CurrentContext& context);

struct Launch {
  Kernel kernel;
  int num_ctas;
  int num_threads;           ///< of a CTA
  std::size_t shared_bytes;  ///< dynamic
  int cluster_size = 0;      ///< CTAs of a cluster; 0: no clusters
  bool is_cooperative = false;
};

/// Where a launch failed, and how. `step` is null if it did not.
struct LaunchOutcome {
  const char* step = nullptr;
  std::string error;
};

/// Prepares and launches a kernel on the context's device and stream. It takes one argument, a
/// struct. Where the code that is loaded is for compute capability 9.0 or above it may start before
/// its predecessor in the stream ends, and has to wait for it itself.
LaunchOutcome try_launch(const Launch& launch, void* args, const Context& context);

/// What to return for a launch that failed: kInvalidValue for a stream of another device, else
/// kRuntimeError with the step and what was expected.
Status refuse_launch(std::string_view op, std::string_view expected, const Context& context,
                     const LaunchOutcome& outcome);

/// The same from launch to status; `expected()` is text, made only where it is needed.
template <typename Expected>
Status launch_kernel(std::string_view op, const Launch& launch, void* args, const Context& context,
                     const Expected& expected) {
  const LaunchOutcome outcome = try_launch(launch, args, context);
  if (outcome.step == nullptr) return {};
  return refuse_launch(op, expected(), context, outcome);
}

}  // namespace tessera::cuda
