// How ops launch their kernels.
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

/// Per device, the id of the context in which a kernel was last prepared. What prepare_kernel sets
/// belongs to a context, and a device that is reset gets a new one.
using PreparedContexts = std::array<std::atomic<std::uint64_t>, kMaxDevices>;

/// A kernel and its requirements.
struct Kernel {
  const void* function = nullptr;
  bool needs_shared_memory = false;     ///< dynamic, as much of it as the device has
  std::size_t static_shared_bytes = 0;  ///< at most: what plans leave of the device's shared memory
  bool needs_large_clusters = false;    ///< of more CTAs than every device can run
  PreparedContexts* prepared = nullptr;  ///< lives as long as the process
};

/// Loads the kernel on the current device and sets its attributes, once per context. The current
/// context must be one of the device. Fails if the kernel has more static shared memory than
/// `static_shared_bytes`.
cudaError_t prepare_kernel(const Kernel& kernel, int device_id, const CurrentContext& context);

struct Launch {
  Kernel kernel;
  int num_ctas;
  int num_threads;           ///< of a CTA
  std::size_t shared_bytes;  ///< dynamic
  int cluster_size = 0;      ///< CTAs of a cluster; 0: no clusters
  bool is_cooperative = false;
  /// Whether it may start before its predecessor in the stream ends, from compute capability 9.0
  /// on; then it has to wait for that (parts/pdl.cuh). After a kernel that lets none start early
  /// this takes some 0.2 us longer than a launch that follows it, and after others 0.5 us less.
  bool may_start_early = true;
};

/// Which step of a launch failed, and the error. `step` is null if none did.
struct LaunchOutcome {
  const char* step = nullptr;
  std::string error;
};

/// Prepares and launches a kernel on the context's device and stream. `args` is the kernel's one
/// argument, a struct.
LaunchOutcome try_launch(const Launch& launch, void* args, const Context& context);

/// The status of a failed launch: kInvalidValue for a stream of another device, else kRuntimeError
/// with the step and what was expected.
Status refuse_launch(std::string_view op, std::string_view expected, const Context& context,
                     const LaunchOutcome& outcome);

/// Launches a kernel and returns the status. `expected()` makes a text, for the message of a failed
/// launch.
template <typename Expected>
Status launch_kernel(std::string_view op, const Launch& launch, void* args, const Context& context,
                     const Expected& expected) {
  const LaunchOutcome outcome = try_launch(launch, args, context);
  if (outcome.step == nullptr) return {};
  return refuse_launch(op, expected(), context, outcome);
}

}  // namespace tessera::cuda
