// Barriers in shared memory that some threads arrive at and others wait for (PTX ISA, "mbarrier").
// A barrier ends a phase when all arrivals that it expects have come, and all bytes that copies
// have announced. Phases have parity 0, 1, 0 ...
#pragma once

#include <cstdint>

namespace tessera::cuda {

inline constexpr std::uint32_t kBarrierBytes = 8;

/// One thread initialises a barrier, at a multiple of 8 bytes; then it calls fence_barriers, and
/// all threads synchronise. Each phase expects so many arrivals, from 1 to 2^20 - 1.
__device__ __forceinline__ void init_barrier(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Shows initialised barriers to the copy engine.
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives once all cp.async of this thread so far have. This is one of the arrivals that the
/// barrier expects: with .noinc it adds none to them.
__device__ __forceinline__ void arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and announces bytes that the copy engine will write: fewer than 2^20 in a phase.
__device__ __forceinline__ void arrive_and_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits until the phase of this parity has ended. For a new barrier, the phase before the first
/// has parity 1. Only the current phase and the one before it can be told apart.
__device__ __forceinline__ void wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// A stage of a pipeline of kStages, and the parity of the phase in which it is full.
template <std::uint32_t kStages>
struct PipelineCursor {
  std::uint32_t stage = 0;
  std::uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }

  __device__ __forceinline__ void advance_by(std::uint32_t stages) {
    stage += stages;
    parity ^= stage / kStages % 2;
    stage %= kStages;
  }
};

}  // namespace tessera::cuda
