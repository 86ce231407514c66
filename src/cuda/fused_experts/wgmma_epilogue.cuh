// What the kernels for compute capability 9.0a do with the sums of a tile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/fused_experts/activations.cuh"
#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma_tiles.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/fp8.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// Multiplies by the scales of rows, adds biases, multiplies by the router's weights, applies the
/// activation, and writes the results of half a block of pairs. The gate-up product writes the type
/// of x, or with scales of blocks float8_e4m3fn and its scales, or with scales of rows float32. The
/// down product writes T.
template <Scaling kScaling, typename T, bool kIsGateUp>
class WgmmaEpilogue {
 public:
  using Args = typename WgmmaArgsFor<kScaling>::Product;

  __device__ __forceinline__ WgmmaEpilogue(const Args& args, WgmmaShared shared)
      : args_(args), shared_(shared) {}

  __device__ __forceinline__ WgmmaRow row_of(const WgmmaPlace& place) const {
    if (place.first_slot < 0) return {};
    const std::int32_t slot = place.first_slot + kWgmmaHalf * half() + 16 * warp() + lane() % 16;
    return {slot, args_.sorted_pairs[slot], 1, 1};
  }

  __device__ __forceinline__ void finish(const WgmmaPlace& place, const WgmmaRow& row,
                                         float (&sums)[kWgmmaColumns / 2]) const {
    if constexpr (kScaling == Scaling::kRows) scale_rows(place, of_rows(row.scale), sums);
    if constexpr (kIsGateUp) {
      if (args_.bias != nullptr) {
        add_biases(place, of_rows(row.weight), sums);
      } else if (args_.topk_weights != nullptr) {
        scale(of_rows(row.weight), sums);
      }
      with_activation(args_.activation,
                      [&]<Activation kActivation>() { activate<kActivation>(place, row, sums); });
    } else {
      if (args_.bias != nullptr) add_biases(place, {1, 1}, sums);
      scale(of_rows(row.weight), sums);
      write_boxes<2>(place, row, [&](int i) { return sums[i]; });
    }
  }

 private:
  static constexpr int kBoxEights = kWgmmaBoxRows / 8;

  __device__ static int half() { return static_cast<int>(threadIdx.x) / kWarpgroupThreads - 1; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32 % 4; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// The column of the lane's first of two sums of eight columns.
  __device__ __forceinline__ int column(int eight) const { return 8 * eight + lane() % 4 * 2; }

  /// The row of the weights behind a column of the tile. Nothing reads the outputs after the last.
  __device__ __forceinline__ std::int64_t weight_row(const WgmmaPlace& place, int column) const {
    const bool is_gated = kIsGateUp && args_.is_gated;
    const bool is_up = is_gated && column >= kWgmmaBoxRows;
    const std::int64_t output =
        min(place.first_output + column - (is_up ? kWgmmaBoxRows : 0), args_.num_outputs - 1);
    return is_gated ? gated_row(args_, output, is_up) : output;
  }

  /// From what each lane knows of its WgmmaRow.
  __device__ __forceinline__ OfRows of_rows(float of_row) const {
    return {{__shfl_sync(kAllLanes, of_row, lane() / 4),
             __shfl_sync(kAllLanes, of_row, lane() / 4 + 8)}};
  }

  /// Multiplies by the scales of whole rows: of those multiplied, and of the weights.
  __device__ __forceinline__ void scale_rows(const WgmmaPlace& place, const OfRows& scales,
                                             float (&sums)[kWgmmaColumns / 2]) const {
    const float* const of_weights = args_.weight_scales.of_row(place.expert, 0);
    if (args_.weight_scales.kind == core::WeightScales::kPerExpert) {
      scale({{*of_weights * scales.of[0], *of_weights * scales.of[1]}}, sums);
      return;
    }
#pragma unroll
    for (int i = 0; i < kWgmmaColumns / 2; i += 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float of_column = of_weights[weight_row(place, column(i / 4) + j)];
        sums[i + j] *= of_column * scales.of[0];
        sums[i + j + 2] *= of_column * scales.of[1];
      }
    }
  }

  /// Multiplies by weights and adds the biases, rounding once as the other kernels do.
  __device__ __forceinline__ void add_biases(const WgmmaPlace& place, const OfRows& weights,
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

  __device__ __forceinline__ void scale(const OfRows& weights,
                                        float (&sums)[kWgmmaColumns / 2]) const {
#pragma unroll
    for (int i = 0; i < kWgmmaColumns / 2; ++i) sums[i] *= weights.of[i / 2 % 2];
  }

  template <Activation kActivation>
  __device__ __forceinline__ void activate(const WgmmaPlace& place, const WgmmaRow& row,
                                           float (&sums)[kWgmmaColumns / 2]) const {
    constexpr int kUp = kWgmmaBoxRows / 2;  // sums of up follow so many sums of gate
    constexpr int kBoxes = has_gate(kActivation) ? 1 : 2;
    const auto result = [&](int i) {
      return activated<kActivation>(args_, sums[i], has_gate(kActivation) ? sums[i + kUp] : 0);
    };
    if constexpr (kScaling == Scaling::kBlocks) {
#pragma unroll
      for (int i = 0; i < kBoxes * kUp; ++i) sums[i] = result(i);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) write_quantized(place, row, box, sums);
    } else if constexpr (kScaling == Scaling::kRows) {
      write_floats<kBoxes>(place, row, result);
    } else {
      write_boxes<kBoxes>(place, row, result);
    }
  }

  /// Where an element of row l / 4 + 8 `lower` lies in the warp's results.
  __device__ __forceinline__ std::uint32_t result_at(int lower, int column, int bytes) const {
    return results() + (lane() / 4 + 8 * lower) * kWgmmaResultStride +
           static_cast<std::uint32_t>(column * bytes);
  }

  __device__ __forceinline__ std::uint32_t results() const {
    return shared_.results(static_cast<std::uint32_t>(4 * half() + warp()));
  }

  /// Puts two elements of row l / 4 + 8 `lower` into the warp's results.
  __device__ __forceinline__ void put(int lower, int eight, float first, float second) const {
    struct alignas(4) Two {
      T elements[2];
    };
    const Two two{rounded<T>(first), rounded<T>(second)};
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(result_at(lower, column(eight), 2)),
                 "r"(reinterpret_cast<const std::uint32_t&>(two))
                 : "memory");
  }

  /// Writes kWgmmaBoxRows results of each row of the warp, from `first_output` on.
  template <typename Output>
  __device__ __forceinline__ void write(const WgmmaRow& row, std::int32_t first_output) const {
    constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Output));
    constexpr int kLanes = kWgmmaBoxRows / kPerWord;  // for a row
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kLanes / 2; ++i) {
      const int line = 32 / kLanes * i + lane() / kLanes;
      const std::int32_t to = __shfl_sync(kAllLanes, kIsGateUp ? row.slot : row.pair, line);
      const std::int32_t output = first_output + lane() % kLanes * kPerWord;
      uint4 word;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                   : "r"(results() + line * kWgmmaResultStride + lane() % kLanes * kWordBytes)
                   : "memory");
      if (output >= args_.num_outputs || (!kIsGateUp && to >= args_.num_pairs)) continue;
      *reinterpret_cast<uint4*>(static_cast<Output*>(args_.output) + to * args_.output_stride +
                                output) = word;
    }
    __syncwarp();
  }

  /// Writes kBoxes times kWgmmaBoxRows results of each row of the warp: result(i) belongs to the
  /// column of sum i.
  template <int kBoxes, typename Result>
  __device__ __forceinline__ void write_boxes(const WgmmaPlace& place, const WgmmaRow& row,
                                              const Result& result) const {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const std::int32_t first = place.first_output + box * kWgmmaBoxRows;
      if (first >= args_.num_outputs) break;
#pragma unroll
      for (int eight = 0; eight < kBoxEights; ++eight) {
        const int i = 4 * (box * kBoxEights + eight);
        put(0, eight, result(i), result(i + 1));
        put(1, eight, result(i + 2), result(i + 3));
      }
      write<T>(row, first);
    }
  }

  /// The same in float32. Four lanes have 32 bytes of a row, which are written as a whole.
  template <int kBoxes, typename Result>
  __device__ __forceinline__ void write_floats(const WgmmaPlace& place, const WgmmaRow& row,
                                               const Result& result) const {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const std::int64_t slot = __shfl_sync(kAllLanes, row.slot, lane() / 4 + 8 * lower);
      float* const to = static_cast<float*>(args_.output) + slot * args_.output_stride;
#pragma unroll
      for (int eight = 0; eight < kBoxes * kBoxEights; ++eight) {
        const std::int32_t output = place.first_output + column(eight);
        if (output >= args_.num_outputs) break;
        const int i = 4 * eight + 2 * lower;
        *reinterpret_cast<float2*>(to + output) = make_float2(result(i), result(i + 1));
      }
    }
  }

  /// Returns the largest magnitude of a row's results in a box. NaNs do not count.
  template <typename Result, typename Magnitude>
  __device__ __forceinline__ float largest_of(std::int32_t first_output, const Result& result,
                                              const Magnitude& magnitude) const {
    float largest = 0;
#pragma unroll
    for (int eight = 0; eight < kBoxEights; ++eight) {
      const float of_eight = fmaxf(magnitude(result(eight, 0)), magnitude(result(eight, 1)));
      if (first_output + 8 * eight < args_.num_outputs) largest = fmaxf(largest, of_eight);
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    return fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  }

  /// Quantises the kWgmmaBoxRows results of a box, which are a group of each row, and writes them
  /// and their scales.
  __device__ __forceinline__ void write_quantized(const WgmmaPlace& place, const WgmmaRow& row,
                                                  int box,
                                                  const float (&sums)[kWgmmaColumns / 2]) const {
    const std::int32_t first = place.first_output + box * kWgmmaBoxRows;
    if (first >= args_.num_outputs) return;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const auto result = [&](int eight, int i) {
        return sums[4 * (box * kBoxEights + eight) + 2 * lower + i];
      };
      // Infinities, which do not count, are rare: most rows are done with the simpler maximum.
      float largest = largest_of(first, result, [](float value) { return fabsf(value); });
      if (__any_sync(kAllLanes, isinf(largest))) {
        largest = largest_of(first, result,
                             [](float value) { return __uint_as_float(finite_magnitude(value)); });
      }
      const float scale = fp8_scale_for(__float_as_uint(largest), args_.use_ue8m0);
      const Fp8Divisor divisor = fp8_divisor(scale);
#pragma unroll
      for (int eight = 0; eight < kBoxEights; ++eight) {
        const std::uint32_t two =
            fp8x2_bits(quotient(result(eight, 0), divisor), quotient(result(eight, 1), divisor));
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(result_at(lower, column(eight), 1)),
                     "h"(static_cast<std::uint16_t>(two))
                     : "memory");
      }
      const std::int32_t slot = __shfl_sync(kAllLanes, row.slot, lane() / 4 + 8 * lower);
      if (lane() % 4 == 0) {
        args_.output_scales[slot * args_.output_scale_stride + first / kWgmmaBoxRows] = scale;
      }
    }
    write<std::uint8_t>(row, first);
  }

  const Args& args_;
  WgmmaShared shared_;
};

}  // namespace tessera::cuda
