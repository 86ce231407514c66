// What the kernels for compute capability 9.0a do with the sums of a tile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/fused_experts/activations.cuh"
#include "cuda/fused_experts/mma.cuh"
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

  /// Brings the scales and biases of the tile's columns, which finish() reads, to where the warp's
  /// results will be. Called before the products, so that no lane waits for memory at their end.
  __device__ __forceinline__ void begin(const WgmmaPlace& place) const {
    __syncwarp();  // the results of the tile before have been read
    if constexpr (kScaling == Scaling::kRows) copy_scales(place);
    if (args_.bias != nullptr) {
      const T* const biases = static_cast<const T*>(args_.bias) + place.expert * args_.bias_stride;
#pragma unroll
      for (int first = 0; first < kWgmmaColumns; first += 32) {
        const std::int64_t row = weight_row(place, first + lane());
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(of_column(kBiases, first + lane())),
                     "f"(row < 0 ? 0 : to_float(biases[row]))
                     : "memory");
      }
    }
  }

  __device__ __forceinline__ void finish(const WgmmaPlace& place, const WgmmaRow& row,
                                         float (&sums)[kWgmmaColumns / 2]) const {
    if constexpr (kScaling == Scaling::kRows) scale_rows(of_rows(row.scale), sums);
    if constexpr (kIsGateUp) {
      if (args_.bias != nullptr) {
        add_biases(of_rows(row.weight), sums);
      } else if (args_.topk_weights != nullptr) {
        scale(of_rows(row.weight), sums);
      }
      with_activation(args_.activation,
                      [&]<Activation kActivation>() { activate<kActivation>(place, row, sums); });
    } else {
      if (args_.bias != nullptr) add_biases({{1, 1}}, sums);
      scale(of_rows(row.weight), sums);
      write_boxes<2>(place, row, [&](int i) { return sums[i]; });
    }
  }

 private:
  static constexpr int kBoxEights = kWgmmaBoxRows / 8;

  __device__ __forceinline__ int lane() const { return thread_.lane; }

  __device__ __forceinline__ std::int32_t slot_of(const WgmmaPlace& place, int line) const {
    return thread_.slot_of(place, line);
  }

  /// The column of the lane's first of two sums of eight columns.
  __device__ __forceinline__ int column(int eight) const { return 8 * eight + lane() % 4 * 2; }

  /// The row of the weights behind a column of the tile; -1 after the last output.
  __device__ __forceinline__ std::int64_t weight_row(const WgmmaPlace& place, int column) const {
    const bool is_gated = kIsGateUp && args_.is_gated;
    const bool is_up = is_gated && column >= kWgmmaBoxRows;
    const std::int32_t output = place.first_output + column - (is_up ? kWgmmaBoxRows : 0);
    if (output >= args_.num_outputs) return -1;
    return is_gated ? gated_row(args_, output, is_up) : output;
  }

  /// From what each lane knows of its WgmmaRow.
  __device__ __forceinline__ OfRows of_rows(float of_row) const {
    return {{__shfl_sync(kAllLanes, of_row, lane() / 4),
             __shfl_sync(kAllLanes, of_row, lane() / 4 + 8)}};
  }

  /// What is kept of columns, where results will be.
  enum ColumnValues : std::uint32_t { kScales, kBiases };
  static_assert(2 * kWgmmaColumns * sizeof(float) <= kWgmmaWarpBytes);

  __device__ __forceinline__ std::uint32_t of_column(ColumnValues values, int column) const {
    return results() +
           (values * kWgmmaColumns + static_cast<std::uint32_t>(column)) * sizeof(float);
  }

  /// Copies the scale of an expert as one of each of its rows: with a way of its own the compiler
  /// keeps some sums in memory.
  __device__ __forceinline__ void copy_scales(const WgmmaPlace& place) const {
    const float* const of_weights = args_.weight_scales.of_row(place.expert, 0);
    const bool is_one = args_.weight_scales.kind == core::WeightScales::kPerExpert;
#pragma unroll
    for (int first = 0; first < kWgmmaColumns; first += 32) {
      const std::int64_t row = weight_row(place, first + lane());
      copy_float_async(of_column(kScales, first + lane()), of_weights + (is_one ? 0 : row),
                       row >= 0);
    }
    commit_copies();
  }

  /// Calls visit(i, value of the column) for each sum i of the lane's first row.
  template <typename Visit>
  __device__ __forceinline__ void for_each_column(ColumnValues values, const Visit& visit) const {
    wait_for_copies<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kWgmmaColumns / 2; i += 4) {
      float two[2];
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(two[0]), "=f"(two[1])
                   : "r"(of_column(values, column(i / 4)))
                   : "memory");
      visit(i, two[0]);
      visit(i + 1, two[1]);
    }
    __syncwarp();  // results may take the place of what has been read
  }

  /// Multiplies by the scales of whole rows: of those multiplied, and of the weights.
  __device__ __forceinline__ void scale_rows(const OfRows& scales,
                                             float (&sums)[kWgmmaColumns / 2]) const {
    for_each_column(kScales, [&](int i, float of_column) {
      sums[i] *= of_column * scales.of[0];
      sums[i + 2] *= of_column * scales.of[1];
    });
  }

  /// Multiplies by weights and adds the biases, rounding once as the other kernels do.
  __device__ __forceinline__ void add_biases(const OfRows& weights,
                                             float (&sums)[kWgmmaColumns / 2]) const {
    for_each_column(kBiases, [&](int i, float bias) {
      sums[i] = __fmaf_rn(weights.of[0], sums[i], bias);
      sums[i + 2] = __fmaf_rn(weights.of[1], sums[i + 2], bias);
    });
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
      write_floats<kBoxes>(place, result);
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
    return shared_.results(static_cast<std::uint32_t>(thread_.warp));
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

  static constexpr int kLanesPerRow = kLineBytes / static_cast<int>(kWordBytes);
  static constexpr int kRowsAtOnce = 32 / kLanesPerRow;

  /// Where a lane writes words of some rows of the warp; null where a row has no pair.
  template <typename Output>
  struct Words {
    Output* of_rows[16 / kRowsAtOnce];
  };

  template <typename Output>
  __device__ __forceinline__ Words<Output> words_of(const WgmmaPlace& place,
                                                    const WgmmaRow& row) const {
    constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Output));
    Words<Output> words;
#pragma unroll
    for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
      const int line = kRowsAtOnce * i + lane() / kLanesPerRow;
      const std::int64_t to =
          kIsGateUp ? slot_of(place, line) : __shfl_sync(kAllLanes, row.pair, line);
      const bool is_written = kIsGateUp || to < args_.num_pairs;
      words.of_rows[i] = is_written
                             ? static_cast<Output*>(args_.output) + to * args_.output_stride +
                                   lane() % kLanesPerRow * kPerWord
                             : nullptr;
    }
    return words;
  }

  /// Writes a line of results of each row of the warp, from `first_output` on.
  template <typename Output>
  __device__ __forceinline__ void write(const Words<Output>& words,
                                        std::int32_t first_output) const {
    constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Output));
    const bool is_output = first_output + lane() % kLanesPerRow * kPerWord < args_.num_outputs;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 / kRowsAtOnce; ++i) {
      const int line = kRowsAtOnce * i + lane() / kLanesPerRow;
      uint4 word;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                   : "r"(results() + line * kWgmmaResultStride + lane() % kLanesPerRow * kWordBytes)
                   : "memory");
      if (is_output && words.of_rows[i] != nullptr) {
        *reinterpret_cast<uint4*>(words.of_rows[i] + first_output) = word;
      }
    }
    __syncwarp();
  }

  /// Writes kBoxes times kWgmmaBoxRows results of each row of the warp: result(i) belongs to the
  /// column of sum i.
  template <int kBoxes, typename Result>
  __device__ __forceinline__ void write_boxes(const WgmmaPlace& place, const WgmmaRow& row,
                                              const Result& result) const {
    constexpr int kColumns = kLineBytes / static_cast<int>(sizeof(T));
    const Words<T> words = words_of<T>(place, row);
#pragma unroll
    for (int begin = 0; begin < kBoxes * kWgmmaBoxRows; begin += kColumns) {
      const std::int32_t first = place.first_output + begin;
      if (first >= args_.num_outputs) break;
#pragma unroll
      for (int eight = 0; eight < kColumns / 8; ++eight) {
        const int i = begin / 2 + 4 * eight;
        put(0, eight, result(i), result(i + 1));
        put(1, eight, result(i + 2), result(i + 3));
      }
      write(words, first);
    }
  }

  /// The same in float32. Four lanes have 32 bytes of a row, which are written as a whole.
  template <int kBoxes, typename Result>
  __device__ __forceinline__ void write_floats(const WgmmaPlace& place,
                                               const Result& result) const {
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const std::int64_t slot = slot_of(place, lane() / 4 + 8 * lower);
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

  /// The largest magnitudes of the results of a box. NaNs do not count.
  template <typename Magnitude>
  __device__ __forceinline__ OfRows largest_of(int box, const float (&sums)[kWgmmaColumns / 2],
                                               const Magnitude& magnitude) const {
    OfRows largest{};
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; ++i) {
      float& of_row = largest.of[i / 2 % 2];
      of_row = fmaxf(of_row, magnitude(sums[box * (kWgmmaBoxRows / 2) + i]));
    }
#pragma unroll
    for (float& of_row : largest.of) {
      of_row = fmaxf(of_row, __shfl_xor_sync(kAllLanes, of_row, 1));
      of_row = fmaxf(of_row, __shfl_xor_sync(kAllLanes, of_row, 2));
    }
    return largest;
  }

  /// Quantises the kWgmmaBoxRows results of a box, which are a group of each row, and writes them
  /// and their scales. The results after the last output are zeros.
  __device__ __forceinline__ void write_quantized(const WgmmaPlace& place, const WgmmaRow& row,
                                                  int box,
                                                  const float (&sums)[kWgmmaColumns / 2]) const {
    const std::int32_t first = place.first_output + box * kWgmmaBoxRows;
    if (first >= args_.num_outputs) return;
    // Infinities, which do not count, are rare: most rows are done with the simpler maximum.
    OfRows largest = largest_of(box, sums, [](float value) { return fabsf(value); });
    if (__any_sync(kAllLanes, isinf(fmaxf(largest.of[0], largest.of[1])))) {
      largest = largest_of(box, sums,
                           [](float value) { return __uint_as_float(finite_magnitude(value)); });
    }
    Fp8Divisor divisors[2];
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const std::uint32_t bits = __float_as_uint(largest.of[lower]);
      divisors[lower] = fp8_divisor(fp8_scale_for(bits, args_.use_ue8m0));
    }
    write_scales(place, first, divisors);
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; i += 2) {
      const float* const two = sums + box * (kWgmmaBoxRows / 2) + i;
      const int lower = i / 2 % 2;
      const std::uint32_t bits =
          fp8x2_bits(quotient(two[0], divisors[lower]), quotient(two[1], divisors[lower]));
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(result_at(lower, column(i / 4), 1)),
                   "h"(static_cast<std::uint16_t>(bits))
                   : "memory");
    }
    write(words_of<std::uint8_t>(place, row), first);
  }

  /// Writes the scales of the group from `first` on of the lane's two rows.
  __device__ __forceinline__ void write_scales(const WgmmaPlace& place, std::int32_t first,
                                               const Fp8Divisor (&divisors)[2]) const {
    float* const to = args_.output_scales + first / kWgmmaBoxRows * args_.output_scale_stride;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      if (lane() % 4 == 0) to[slot_of(place, lane() / 4 + 8 * lower)] = divisors[lower].scale;
    }
  }

  const Args& args_;
  WgmmaShared shared_;
  WgmmaThread thread_;
};

}  // namespace tessera::cuda
