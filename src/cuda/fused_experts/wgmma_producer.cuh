// The copies of the kernels for compute capability 9.0a.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/mma.cuh"
#include "cuda/fused_experts/wgmma_tiles.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/mbarrier.cuh"
#include "cuda/parts/tma.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// The copies of one tile and of the next ones, by a warpgroup.
template <Scaling kScaling, bool kIsGateUp>
class WgmmaProducer {
 public:
  using Args = WgmmaArgsFor<kScaling>;

  __device__ __forceinline__ WgmmaProducer(const Args& args, WgmmaShared shared)
      : args_(args), shared_(shared), places_(shared) {}

  /// Arrivals that make a stage full: one announces bytes, and all threads end their gathering.
  static constexpr std::uint32_t kArrivals = kIsGateUp ? 1 + kWarpgroupThreads : 1;

  static constexpr std::uint32_t kWarps = kIsGateUp ? kWarpgroupThreads / 32 : 1;

  __device__ __forceinline__ void run() {
    if (threadIdx.x >= 32 * kWarps) return;
    WgmmaPlaces published(shared_);
    const bool is_first = threadIdx.x == 0;
    if (is_first) published.publish(place_of(args_.product, take_tile(args_.tiles_taken)));
    while (true) {
      const WgmmaPlace place = places_.read();
      if (place.first_slot < 0) return;
      std::uint32_t next = 0;
      if (is_first) next = take_tile(args_.tiles_taken);
      copy(place);
      if (is_first) published.publish(place_of(args_.product, next));
    }
  }

 private:
  using Element = ElementOf<kScaling>;
  static constexpr int kDepth = kDepthOf<kScaling>;
  static constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Element));
  static constexpr int kLinesAtOnce = kWarpgroupThreads * static_cast<int>(kWordBytes) / kLineBytes;
  static constexpr int kLines = kWgmmaPairs / kLinesAtOnce;

  __device__ __forceinline__ void copy(const WgmmaPlace& place) {
    const Element* sources[kLines];
    if constexpr (kIsGateUp) find_rows(place, sources);
    for (std::int32_t begin = 0; begin < args_.product.depth; begin += kDepth) {
      wait(shared_.empty(at_), at_.parity ^ 1);
      if (threadIdx.x == 0) copy_boxes(place, begin);
      if constexpr (kIsGateUp) gather(sources, place.num_halves, begin);
      at_.advance();
    }
  }

  __device__ __forceinline__ void copy_boxes(const WgmmaPlace& place, std::int32_t begin) const {
    constexpr std::uint32_t kBoxBytes = kWgmmaBoxRows * kLineBytes;
    constexpr std::uint32_t kHalfBytes = kWgmmaHalf * kLineBytes;
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
                                            const Element* (&sources)[kLines]) const {
    const ProductArgs& args = args_.product;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const std::int32_t pair = args.sorted_pairs[place.first_slot + line() + i * kLinesAtOnce];
      sources[i] = nullptr;
      if (pair >= args.num_pairs) continue;
      sources[i] = static_cast<const Element*>(args.rows) +
                   std::int64_t{divide(pair, args.slots_per_row)} * args.row_stride +
                   word() * kPerWord;
    }
  }

  __device__ __forceinline__ void gather(const Element* const (&sources)[kLines], int num_halves,
                                         std::int32_t begin) const {
    const bool is_within = begin + word() * kPerWord < args_.product.depth;
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

  const Args& args_;
  WgmmaShared shared_;
  StageCursor at_;  // the next to fill
  WgmmaPlaces places_;
};

}  // namespace tessera::cuda
