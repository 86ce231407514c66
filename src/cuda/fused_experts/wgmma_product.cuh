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

/// Registers of a thread that copies, and of one that multiplies.
inline constexpr int kWgmmaProducerRegisters = 56;
inline constexpr int kWgmmaConsumerRegisters = 224;

/// T: the type of biases and of the rows of the down product.
template <Scaling kScaling, typename T, bool kIsGateUp>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_product(const __grid_constant__ WgmmaArgsFor<kScaling> args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const WgmmaShared shared{uniform(shared_address(memory))};
  using Producer = WgmmaProducer<kScaling, kIsGateUp>;
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
    decrease_registers<kWgmmaProducerRegisters>();
    Producer(args, shared).run();
  } else {
    increase_registers<kWgmmaConsumerRegisters>();
    WgmmaConsumer<kScaling, T, kIsGateUp>(args, shared).run();
  }
}

/// The kernel of a product.
template <bool kIsGateUp, typename T>
const void* wgmma_product_kernel(Scaling scaling) {
  switch (scaling) {
    case Scaling::kNone:
      return reinterpret_cast<const void*>(&wgmma_product<Scaling::kNone, T, kIsGateUp>);
    case Scaling::kBlocks:
      return reinterpret_cast<const void*>(&wgmma_product<Scaling::kBlocks, T, kIsGateUp>);
    default:
      return reinterpret_cast<const void*>(&wgmma_product<Scaling::kRows, T, kIsGateUp>);
  }
}

}  // namespace tessera::cuda
