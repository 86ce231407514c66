// The kernel of both products on compute capability 9.0a. CTAs stay, and take tiles in turns. One
// warpgroup copies: weights by the copy engine, rows of x by gathering, in a pipeline of stages
// that runs on from tile to tile. Two or three more multiply a part of a block of pairs each, and
// write the results. Every sum is computed in the order of its terms, whatever else the tile holds.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

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

/// Registers of a thread that copies.
inline constexpr int kWgmmaProducerRegisters = 56;
/// Of a thread that multiplies: a share of what a CTA has at first, a multiple of 8 for each of its
/// threads, less what the producer keeps.
template <std::size_t kTiling>
inline constexpr int kWgmmaConsumerRegisters = [] {
  using Layout = WgmmaLayout<kTiling>;
  constexpr int kAtFirst = 65536 / Layout::kThreads / 8 * 8;
  return (kAtFirst * (1 + Layout::kParts) - kWgmmaProducerRegisters) / Layout::kParts / 8 * 8;
}();

/// T: the type of biases and of the rows of the down product.
template <Scaling kScaling, typename T, bool kIsGateUp, std::size_t kTiling>
__global__ void __launch_bounds__(WgmmaLayout<kTiling>::kThreads, 1)
    wgmma_product(const __grid_constant__ WgmmaArgsFor<kScaling> args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const WgmmaShared<kTiling> shared{uniform(shared_address(memory))};
  using Producer = WgmmaProducer<kScaling, kIsGateUp, kTiling>;
  constexpr std::uint32_t kConsumerWarps = WgmmaLayout<kTiling>::kConsumerWarps;
  pdl_launch_dependents();
  if (threadIdx.x == 0) {
    prefetch_map(&args.weights);
    if constexpr (!kIsGateUp) prefetch_map(&args.intermediate);
    for (typename WgmmaShared<kTiling>::Stage at; at.parity == 0; at.advance()) {
      init_barrier(shared.full(at), Producer::kArrivals);
      init_barrier(shared.empty(at), kConsumerWarps);
    }
    for (std::uint32_t i = 0; i < kWgmmaPlaces; ++i) {
      init_barrier(shared.place_full(i), 1);
      init_barrier(shared.place_empty(i), 32 * (kConsumerWarps + Producer::kWarps));
    }
    fence_barriers();
  }
  __syncthreads();
  pdl_wait();
  if (threadIdx.x < kWarpgroupThreads) {
    decrease_registers<kWgmmaProducerRegisters>();
    Producer(args, shared).run();
  } else {
    increase_registers<kWgmmaConsumerRegisters<kTiling>>();
    WgmmaConsumer<kScaling, T, kIsGateUp, kTiling>(args, shared).run();
  }
}

template <Scaling kScaling, bool kIsGateUp, typename T>
const void* wgmma_product_kernel(std::size_t tiling) {
  return [tiling]<std::size_t... kTilings>(std::index_sequence<kTilings...>) {
    return std::array{
        reinterpret_cast<const void*>(&wgmma_product<kScaling, T, kIsGateUp, kTilings>)...}[tiling];
  }
  (std::make_index_sequence<num_wgmma_tilings(kScaling)>{});
}

/// The kernel of a product. `tiling` is below num_wgmma_tilings(scaling).
template <bool kIsGateUp, typename T>
const void* wgmma_product_kernel(Scaling scaling, std::size_t tiling) {
  switch (scaling) {
    case Scaling::kBlocks:
      return wgmma_product_kernel<Scaling::kBlocks, kIsGateUp, T>(tiling);
    case Scaling::kRows:
      return wgmma_product_kernel<Scaling::kRows, kIsGateUp, T>(tiling);
    default:
      return wgmma_product_kernel<Scaling::kNone, kIsGateUp, T>(tiling);
  }
}

}  // namespace tessera::cuda
