// Programmatic dependent launch: a kernel may start before its predecessor in the stream has ended.
// Needs compute capability 9.0; earlier devices run the kernels one after the other.
#pragma once

namespace tessera::cuda {

/// Waits until the preceding kernel of the stream has ended. Before this call a kernel must not
/// access global memory, but for what was there when a predecessor, which had waited itself, let it
/// start.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start and run up to its own pdl_wait.
__device__ __forceinline__ void pdl_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace tessera::cuda
