// Programmatic dependent launch: a kernel may start before its predecessor in the stream has ended.
#pragma once

namespace tessera::cuda {

/// Programmatic dependent launch: up to this call a kernel may run beside its predecessor in the
/// stream, and must not touch global memory.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start, as far as it can before its own wait.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace tessera::cuda
