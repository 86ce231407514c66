// How every op launches its kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// The devices on which a kernel is ready to be launched, a bit each.
using PreparedDevices = std::atomic<std::uint64_t>;

/// What the runtime has to be told of a kernel.
struct KernelNeeds {
  bool dynamic_shared_memory = false;  ///< as much of it as the device has
  bool large_clusters = false;         ///< of more CTAs than every device can run
};

/// Loads a kernel's code onto the device, which is current, and asks for what it needs, unless
/// `devices` says that both are done; the runtime keeps such settings a device.
cudaError_t prepare_kernel(const void* kernel, KernelNeeds needs, int device_id,
                           PreparedDevices* devices);

/// A launch of a prepared kernel.
struct Launch {
  const void* kernel;
  int num_ctas;
  int num_threads;           ///< of a CTA
  std::size_t shared_bytes;  ///< dynamic
  int cluster_size = 0;      ///< CTAs of a cluster; 0: no clusters
  bool is_cooperative = false;
};

/// Launches on the context's device, which is current, and stream. The kernel takes one argument, a
/// struct. From compute capability 9.0 on it may start before its predecessor in the stream ends,
/// and has to wait for it itself.
cudaError_t launch_kernel(const Launch& launch, void* args, const Context& context);

/// What to return for a launch that failed: kInvalidValue if the stream belongs to another device,
/// else kRuntimeError with `what` and `expected`.
Status refuse_launch(std::string_view op, std::string_view what, std::string_view expected,
                     const Context& context, cudaError_t error);

}  // namespace tessera::cuda
