// The kernel of both products on compute capability 9.0a. CTAs stay, and take tiles in turns. One
// warpgroup copies: weights by the copy engine, rows of x by gathering, in a pipeline of stages
// that runs on from tile to tile. Two more multiply half a block of pairs each, and write the
// results. Every sum is computed in the order of its terms, whatever else the tile holds.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/fused_experts/activations.cuh"
#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/fused_experts/wgmma_tiles.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// The copies of one tile and of the next ones, by a warpgroup.
template <bool kIsGateUp>
class WgmmaProducer {
 public:
  __device__ __forceinline__ WgmmaProducer(const WgmmaArgs& args, WgmmaShared shared)
      : args_(args), shared_(shared), places_(shared) {}

  /// Arrivals that make a stage full: one announces bytes, and all threads end their gathering.
  static constexpr std::uint32_t kArrivals = kIsGateUp ? 1 + kWarpgroupThreads : 1;

  static constexpr std::uint32_t kWarps = kIsGateUp ? kWarpgroupThreads / 32 : 1;

  __device__ __forceinline__ void run() {
    if (threadIdx.x >= 32 * kWarps) return;
    WgmmaPlaces published(shared_);
    const bool is_first = threadIdx.x == 0;
    if (is_first) published.publish(place_of(args_.product, take_tile(args_)));
    while (true) {
      const WgmmaPlace place = places_.read();
      if (place.first_slot < 0) return;
      std::uint32_t next = 0;
      if (is_first) next = take_tile(args_);
      copy(place);
      if (is_first) published.publish(place_of(args_.product, next));
    }
  }

 private:
  static constexpr int kLinesAtOnce = kWarpgroupThreads * static_cast<int>(kWordBytes) / 128;
  static constexpr int kLines = kWgmmaPairs / kLinesAtOnce;

  __device__ __forceinline__ void copy(const WgmmaPlace& place) {
    const std::uint16_t* sources[kLines];
    if constexpr (kIsGateUp) find_rows(place, sources);
    for (std::int32_t step = 0; step < num_stages_of(args_.product); ++step) {
      wait(shared_.empty(at_), at_.parity ^ 1);
      if (threadIdx.x == 0) copy_boxes(place, step * kStageDepth);
      if constexpr (kIsGateUp) gather(sources, place.num_halves, step * kStageDepth);
      at_.advance();
    }
  }

  __device__ __forceinline__ void copy_boxes(const WgmmaPlace& place, std::int32_t begin) const {
    constexpr std::uint32_t kBoxBytes = kWgmmaBoxRows * kStageDepth * 2;
    constexpr std::uint32_t kHalfBytes = kWgmmaHalf * kStageDepth * 2;
    const std::uint32_t full = shared_.full(at_);
    const int halves = kIsGateUp ? 0 : place.num_halves;
    arrive_and_expect(full, 2 * kBoxBytes + static_cast<std::uint32_t>(halves) * kHalfBytes);
    for (int i = 0; i < halves; ++i) {
      copy_box(shared_.rows(at_) + i * kHalfBytes, &args_.intermediate, full, begin,
               place.first_slot + i * kWgmmaHalf);
    }
    const bool is_gated = args_.product.is_gated;
    for (std::int32_t box = 0; box < 2; ++box) {
      const std::uint32_t target = shared_.weights(at_) + box * kBoxBytes;
      const std::int32_t row = place.first_output + (is_gated ? 0 : box * kWgmmaBoxRows);
      copy_box(target, &args_.weights, full, begin, row, is_gated ? box : 0, place.expert);
    }
  }

  __device__ static int word() { return static_cast<int>(threadIdx.x) % 8; }
  __device__ static int line() { return static_cast<int>(threadIdx.x) / 8; }

  /// The words that this thread copies of each stage.
  __device__ __forceinline__ void find_rows(const WgmmaPlace& place,
                                            const std::uint16_t* (&sources)[kLines]) const {
    const ProductArgs& args = args_.product;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const std::int32_t pair = args.sorted_pairs[place.first_slot + line() + i * kLinesAtOnce];
      sources[i] = nullptr;
      if (pair >= args.num_pairs) continue;
      sources[i] = static_cast<const std::uint16_t*>(args.rows) +
                   std::int64_t{divide(pair, args.slots_per_row)} * args.row_stride +
                   word() * kWordElements;
    }
  }

  __device__ __forceinline__ void gather(const std::uint16_t* const (&sources)[kLines],
                                         int num_halves, std::int32_t begin) const {
    const bool is_within = begin + word() * kWordElements < args_.product.depth;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      if (i >= num_halves * (kLines / 2)) break;
      const int row = line() + i * kLinesAtOnce;
      const std::uint32_t place = static_cast<std::uint32_t>(row * 8 + (word() ^ row % 8));
      copy_word_async(shared_.rows(at_) + place * kWordBytes, sources[i] + begin,
                      sources[i] != nullptr && is_within);
    }
    arrive_after_copies(shared_.full(at_));
  }

  const WgmmaArgs& args_;
  WgmmaShared shared_;
  StageCursor at_;  // the next to fill
  WgmmaPlaces places_;
};

/// The products of a warpgroup: of half a block of pairs.
template <typename T, bool kIsGateUp>
class WgmmaConsumer {
 public:
  __device__ __forceinline__ WgmmaConsumer(const WgmmaArgs& args, WgmmaShared shared)
      : args_(args.product),
        shared_(shared),
        places_(shared),
        half_(static_cast<int>(threadIdx.x) / kWarpgroupThreads - 1),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run() {
    while (true) {
      const WgmmaPlace place = places_.read();
      if (place.first_slot < 0) return;
      if (half_ >= place.num_halves) {
        skip();
        continue;
      }
      Row row = row_of(place);
      float sums[kWgmmaColumns / 2] = {};
      multiply(sums, [&] {
        if (row.pair < args_.num_pairs) row.weight = router_weight(args_, row.pair);
      });
      if constexpr (kIsGateUp) {
        if (args_.bias != nullptr) {
          add_biases(place, weights_of(row), sums);
        } else if (args_.topk_weights != nullptr) {
          scale(weights_of(row), sums);
        }
        with_activation(args_.activation,
                        [&]<Activation kActivation>() { activate<kActivation>(place, row, sums); });
      } else {
        if (args_.bias != nullptr) add_biases(place, {1, 1}, sums);
        scale(weights_of(row), sums);
        write_boxes<2>(place, row, [&](int i) { return sums[i]; });
      }
    }
  }

 private:
  /// Lane l, and lane l + 16, know row l of the sixteen of the warp.
  struct Row {
    std::int32_t slot;
    std::int32_t pair;  ///< num_pairs or more: none
    float weight;       ///< the router's, or 1
  };

  __device__ __forceinline__ Row row_of(const WgmmaPlace& place) const {
    const std::int32_t slot = place.first_slot + kWgmmaHalf * half_ + 16 * warp_ + lane_ % 16;
    return {slot, args_.sorted_pairs[slot], 1};
  }

  __device__ __forceinline__ void release(const StageCursor& at) const {
    if (lane_ == 0) arrive(shared_.empty(at));
  }

  __device__ __forceinline__ void skip() {
    for (std::int32_t step = 0; step < num_stages_of(args_); ++step) {
      wait(shared_.full(at_), at_.parity);
      release(at_);
      at_.advance();
    }
  }

  /// Calls meanwhile() once, while the first products run.
  template <typename Meanwhile>
  __device__ __forceinline__ void multiply(float (&sums)[kWgmmaColumns / 2],
                                           const Meanwhile& meanwhile) {
    StageCursor previous;
    for (std::int32_t step = 0; step < num_stages_of(args_); ++step) {
      wait(shared_.full(at_), at_.parity);
      if constexpr (kIsGateUp) fence_async_proxy();  // for what cp.async wrote
      const std::uint64_t rows = tile_descriptor(shared_.rows(at_) + half_ * (kWgmmaRowBytes / 2));
      const std::uint64_t weights = tile_descriptor(shared_.weights(at_));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStageDepth / kWgmmaDepth; ++k) {
        constexpr int kWordsPerWgmma = 2;
        wgmma_64<T, kWgmmaColumns>(rows + k * kWordsPerWgmma, weights + k * kWordsPerWgmma,
                                   step > 0 || k > 0, sums);
      }
      wgmma_commit();
      if (step == 0) meanwhile();
      wgmma_wait<1>();
      if (step > 0) release(previous);
      previous = at_;
      at_.advance();
    }
    wgmma_wait<0>();
    release(previous);
  }

  /// The column of the lane's first of two sums of eight columns.
  __device__ __forceinline__ int column(int eight) const { return 8 * eight + lane_ % 4 * 2; }

  /// The row of the weights behind a column of the tile. Nothing reads the outputs after the last.
  __device__ __forceinline__ std::int64_t weight_row(const WgmmaPlace& place, int column) const {
    const bool is_gated = kIsGateUp && args_.is_gated;
    const bool is_up = is_gated && column >= kWgmmaBoxRows;
    const std::int64_t output =
        min(place.first_output + column - (is_up ? kWgmmaBoxRows : 0), args_.num_outputs - 1);
    return is_gated ? gated_row(args_, output, is_up) : output;
  }

  /// The router's weights of the lane's two rows.
  struct RowWeights {
    float of[2];
  };
  __device__ __forceinline__ RowWeights weights_of(const Row& row) const {
    return {{__shfl_sync(kAllLanes, row.weight, lane_ / 4),
             __shfl_sync(kAllLanes, row.weight, lane_ / 4 + 8)}};
  }

  /// Multiplies by weights and adds the biases, rounding once as the other kernels do.
  __device__ __forceinline__ void add_biases(const WgmmaPlace& place, const RowWeights& weights,
                                             float (&sums)[kWgmmaColumns / 2]) const {
    const T* const biases = static_cast<const T*>(args_.bias) + place.expert * args_.bias_stride;
#pragma unroll
    for (int i = 0; i < kWgmmaColumns / 2; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float bias = to_float(biases[weight_row(place, column(i / 4) + j)]);
        sums[i + j] = __fmaf_rn(weights.of[0], sums[i + j], bias);
        sums[i + j + 2] = __fmaf_rn(weights.of[1], sums[i + j + 2], bias);
      }
    }
  }

  __device__ __forceinline__ void scale(const RowWeights& weights,
                                        float (&sums)[kWgmmaColumns / 2]) const {
#pragma unroll
    for (int i = 0; i < kWgmmaColumns / 2; ++i) sums[i] *= weights.of[i / 2 % 2];
  }

  /// Puts two elements of row l / 4 + 8 `lower` into the warp's results.
  __device__ __forceinline__ void put(int lower, int eight, float first, float second) const {
    struct alignas(4) Two {
      T elements[2];
    };
    const Two two{rounded<T>(first), rounded<T>(second)};
    const std::uint32_t to = results() + (lane_ / 4 + 8 * lower) * kWgmmaResultStride +
                             static_cast<std::uint32_t>(column(eight)) * 2;
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to),
                 "r"(reinterpret_cast<const std::uint32_t&>(two))
                 : "memory");
  }

  __device__ __forceinline__ std::uint32_t results() const {
    return shared_.results(static_cast<std::uint32_t>(4 * half_ + warp_));
  }

  /// Writes kWgmmaBoxRows results of each row of the warp, from `first_output` on.
  __device__ __forceinline__ void write(const Row& row, std::int32_t first_output) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int line = 2 * i + lane_ / 16;
      const std::int32_t to = __shfl_sync(kAllLanes, kIsGateUp ? row.slot : row.pair, line);
      const std::int32_t output = first_output + lane_ % 16 * kWordElements;
      uint4 word;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                   : "r"(results() + line * kWgmmaResultStride + lane_ % 16 * kWordBytes)
                   : "memory");
      if (output >= args_.num_outputs || (!kIsGateUp && to >= args_.num_pairs)) continue;
      *reinterpret_cast<uint4*>(static_cast<T*>(args_.output) + to * args_.output_stride + output) =
          word;
    }
    __syncwarp();
  }

  /// Writes the activated intermediate.
  template <Activation kActivation>
  __device__ __forceinline__ void activate(const WgmmaPlace& place, const Row& row,
                                           const float (&sums)[kWgmmaColumns / 2]) const {
    constexpr int kUp = kWgmmaBoxRows / 2;  // sums of up follow so many sums of gate
    write_boxes<has_gate(kActivation) ? 1 : 2>(place, row, [&](int i) {
      return activated<kActivation>(args_, sums[i], has_gate(kActivation) ? sums[i + kUp] : 0);
    });
  }

  /// Writes kBoxes times kWgmmaBoxRows results of each row of the warp: result(i) belongs to the
  /// column of sum i.
  template <int kBoxes, typename Result>
  __device__ __forceinline__ void write_boxes(const WgmmaPlace& place, const Row& row,
                                              const Result& result) const {
    constexpr int kEights = kWgmmaBoxRows / 8;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const std::int32_t first = place.first_output + box * kWgmmaBoxRows;
      if (first >= args_.num_outputs) break;
#pragma unroll
      for (int eight = 0; eight < kEights; ++eight) {
        const int i = 4 * (box * kEights + eight);
        put(0, eight, result(i), result(i + 1));
        put(1, eight, result(i + 2), result(i + 3));
      }
      write(row, first);
    }
  }

  const ProductArgs& args_;
  WgmmaShared shared_;
  WgmmaPlaces places_;
  StageCursor at_;
  int half_;
  int warp_;
  int lane_;
};

template <typename T, bool kIsGateUp>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_product(const __grid_constant__ WgmmaArgs args) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const WgmmaShared shared{shared_address(memory)};
  using Producer = WgmmaProducer<kIsGateUp>;
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
    decrease_registers<56>();
    Producer(args, shared).run();
  } else {
    increase_registers<224>();
    WgmmaConsumer<T, kIsGateUp>(args, shared).run();
  }
}

}  // namespace tessera::cuda
