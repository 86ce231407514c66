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

  static constexpr std::uint32_t kWarps = kIsGateUp ? kWarpgroupThreads / 32 : 1;

  /// Whether threads copy a part of a stage themselves.
  static constexpr bool kThreadsCopy = kIsGateUp || kScaling == Scaling::kBlocks;

  /// Arrivals that make a stage full: one announces bytes, and threads that copy end their copies.
  static constexpr std::uint32_t kArrivals = kThreadsCopy ? 1 + 32 * kWarps : 1;

  __device__ __forceinline__ void run() {
    if (threadIdx.x >= 32 * kWarps) return;
    const std::uint32_t num_blocks =
        static_cast<std::uint32_t>(*args_.product.num_slots) / kWgmmaPairs;
    WgmmaPlaces published(shared_);
    const bool publishes = threadIdx.x == 0;
    if (publishes) {
      published.publish(place_of(args_.product, num_blocks, take_tile(args_.tiles_taken)));
    }
    while (true) {
      const WgmmaPlace place = places_.read();
      if (place.first_slot < 0) return;
      std::uint32_t tile = 0;
      WgmmaPlace next{};
      // The next tile is taken at the first stage, and not sooner, as other CTAs would have nothing
      // left at the end. Its place is read two stages before the last and published at the last, so
      // that copies hardly wait for memory. In 16 bits to read it earlier was not faster.
      const std::int32_t last = (args_.product.depth - 1) / kDepth;
      const std::int32_t find_at = kScaling == Scaling::kNone ? last : max(0, last - 2);
      copy(place, [&](std::int32_t stage) {
        if (!publishes) return;
        if (stage == 0) tile = take_tile(args_.tiles_taken);
        if (stage == find_at) next = place_of(args_.product, num_blocks, tile);
        if (stage == last) published.publish(next);
      });
    }
  }

 private:
  using Element = ElementOf<kScaling>;
  static constexpr int kDepth = kDepthOf<kScaling>;
  static constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Element));
  static constexpr int kLinesAtOnce = kWarpgroupThreads * static_cast<int>(kWordBytes) / kLineBytes;
  static constexpr int kLines = kWgmmaPairs / kLinesAtOnce;

  /// Copies a tile. Calls after_stage(stage) when a stage is on its way.
  template <typename AfterStage>
  __device__ __forceinline__ void copy(const WgmmaPlace& place, const AfterStage& after_stage) {
    const Element* sources[kLines];
    if constexpr (kIsGateUp) find_rows(place, sources);
    Scales scales{};
    if constexpr (kScaling == Scaling::kBlocks) scales = scales_of(place);
    for (std::int32_t begin = 0; begin < args_.product.depth; begin += kDepth) {
      wait(shared_.empty(at_), at_.parity ^ 1);
      // Where one lane copies, the others only wait: none may fall two phases behind.
      if constexpr (!kThreadsCopy) __syncwarp();
      if (threadIdx.x == 0) copy_boxes(place, begin);
      if constexpr (kScaling == Scaling::kBlocks) copy_scales(scales, begin / kDepth);
      if constexpr (kIsGateUp) gather(sources, place.num_halves, begin);
      if constexpr (kThreadsCopy) arrive_after_copies(shared_.full(at_));
      at_.advance();
      after_stage(begin / kDepth);
    }
  }

  __device__ __forceinline__ void copy_boxes(const WgmmaPlace& place, std::int32_t begin) const {
    constexpr std::uint32_t kBoxBytes = kWgmmaBoxRows * kLineBytes;
    constexpr std::uint32_t kHalfBytes = kWgmmaHalf * kLineBytes;
    const std::uint32_t full = shared_.full(at_);
    const int halves = kIsGateUp ? 0 : place.num_halves;
    constexpr bool kCopiesScales = !kIsGateUp && kScaling == Scaling::kBlocks;
    constexpr std::uint32_t kScaleBytes = kCopiesScales ? kWgmmaHalf * sizeof(float) : 0;
    arrive_and_expect(
        full, 2 * kBoxBytes + static_cast<std::uint32_t>(halves) * (kHalfBytes + kScaleBytes));
    if constexpr (kCopiesScales) {
      copy_bytes(shared_.scales(at_),
                 args_.product.row_scales + begin / kDepth * args_.product.row_scale_stride +
                     place.first_slot,
                 full, static_cast<std::uint32_t>(halves) * kScaleBytes);
    }
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
  }

  /// Where the scales of blocks are that this thread copies.
  struct Scales {
    const float* of_row;  ///< null: there is no row
    const float* of_box;
  };

  __device__ __forceinline__ Scales scales_of(const WgmmaPlace& place) const {
    const WgmmaFp8Product& args = args_.product;
    Scales scales{};
    if constexpr (kIsGateUp) {
      const std::int32_t pair =
          args.sorted_pairs[place.first_slot + static_cast<std::int32_t>(threadIdx.x)];
      if (pair < args.num_pairs) {
        scales.of_row = args.row_scales + divide(pair, args.slots_per_row) * args.row_scale_stride;
      }
    }
    const bool is_second = threadIdx.x % 2 == 1;
    const std::int32_t output =
        place.first_output + (is_second && !args.is_gated ? kWgmmaBoxRows : 0);
    const std::int64_t row =
        args.is_gated ? gated_row(args, output, is_second) : min(output, args.num_outputs - 1);
    scales.of_box = args.weight_scales.of_row(place.expert, row);
    return scales;
  }

  __device__ __forceinline__ void copy_scales(const Scales& scales, std::int32_t stage) const {
    const std::uint32_t target = shared_.scales(at_) + threadIdx.x * sizeof(float);
    if constexpr (kIsGateUp) {
      copy_float_async(target, scales.of_row + stage, scales.of_row != nullptr);
    }
    if (threadIdx.x < 2) {
      copy_float_async(target + kWgmmaPairs * sizeof(float), scales.of_box + stage, true);
    }
  }

  const Args& args_;
  WgmmaShared shared_;
  StageCursor at_;  // the next to fill
  WgmmaPlaces places_;
};

}  // namespace tessera::cuda
