// The kernel of both products on compute capability 9.0a. CTAs stay, and take tiles in turns. One
// warpgroup copies: weights by the copy engine, rows of x by gathering, in a pipeline of stages
// that runs on from tile to tile. Two more multiply half a block of pairs each, and write the
// results. Every sum is computed in the order of its terms, whatever else the tile holds.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/fused_experts/wgmma_consumer.cuh"
#include "cuda/fused_experts/wgmma_producer.cuh"
#include "cuda/fused_experts/wgmma_tiles.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// Registers of a thread that copies, and of one that multiplies. In float8_e4m3fn a thread keeps
/// the sums of a stage beside the sums of a tile.
template <typename Operand>
inline constexpr int kWgmmaProducerRegisters = sizeof(Operand) == 1 ? 40 : 56;
template <typename Operand>
inline constexpr int kWgmmaConsumerRegisters = sizeof(Operand) == 1 ? 232 : 224;

/// Multiplies numbers of type Operand: T, the type of biases and of the rows of the down product,
/// or __nv_fp8_e4m3.
template <typename Operand, typename T, bool kIsGateUp>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_product(const __grid_constant__ WgmmaArgsFor<Operand> args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const WgmmaShared shared{uniform(shared_address(memory))};
  using Producer = WgmmaProducer<Operand, kIsGateUp>;
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    prefetch_map(&args.weights);
    if constexpr (!kIsGateUp) prefetch_map(&args.intermediate);
    for (StageCursor at; at.parity == 0; at.advance()) {
      init_barrier(shared.full(at), Producer::kArrivals);
      init_barrier(shared.empty(at), kWgmmaConsumerWarps);
    }
    for (std::uint32_t i = 0; i < kWgmmaPlaces; ++i) {
      init_barrier(shared.place_full(i), 1);
      init_barrier(shared.place_empty(i), 32 * (kWgmmaConsumerWarps + Producer::kWarps));
    }
    fence_barriers();
  }
  __syncthreads();
  pdl_wait();
  if (threadIdx.x < kWarpgroupThreads) {
    decrease_registers<kWgmmaProducerRegisters<Operand>>();
    Producer(args, shared).run();
  } else {
    increase_registers<kWgmmaConsumerRegisters<Operand>>();
    WgmmaConsumer<Operand, T, kIsGateUp>(args, shared).run();
  }
}

}  // namespace tessera::cuda
