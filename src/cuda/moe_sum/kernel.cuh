// What the kernels of moe_sum and moe_unpermute share. A CTA sums a part of one token's row, and
// each of its threads one word of that part. A thread loads up to kSlotsAtOnce slots at once.
//
// `Slots` finds the rows: its function load() loads the words and weights of the next slots, and
// skip() goes on to those after kSlotsAtOnce slots.
#pragma once

#include <cstdint>

#include "cuda/moe_sum/kernel.hpp"
#include "cuda/parts/floats.cuh"

namespace tessera::cuda {

inline constexpr int kSlotsAtOnce = 8;

/// Rounds to nearest, ties to even. The conversions to 16 bits give every NaN the bits that the
/// contract asks for. A float32 is not converted, so its NaNs are replaced.
__device__ __forceinline__ void round_to(float sum, float* to) {
  *to = isnan(sum) ? __int_as_float(0x7fffffff) : sum;
}
__device__ __forceinline__ void round_to(float sum, __half* to) { *to = __float2half_rn(sum); }
__device__ __forceinline__ void round_to(float sum, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(sum);
}

/// The elements of a row that a thread reads or writes at once.
template <typename T, int kElements>
struct alignas(kElements * sizeof(T)) Word {
  T elements[kElements];
};

/// Adds kSlots slots to the sums of one word. All slots are loaded before the first one is used.
template <int kSlots, typename T, typename Slots, int kElements>
__device__ __forceinline__ void add_slots(const Slots& slots, float (&sums)[kElements]) {
  Word<T, kElements> words[kSlots];
  float weights[kSlots];
  slots.load(words, weights);
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      sums[j] = __fmaf_rn(weights[i], to_float(words[i].elements[j]), sums[j]);
    }
  }
}

/// Adds up to kMost slots. Each number of slots has code of its own, so that all loads are in
/// flight at once.
template <int kMost, typename T, typename Slots, int kElements>
__device__ __forceinline__ void add_last_slots(const Slots& slots, int num_slots,
                                               float (&sums)[kElements]) {
  if (num_slots == kMost) {
    add_slots<kMost, T>(slots, sums);
  } else if constexpr (kMost > 1) {
    add_last_slots<kMost - 1, T>(slots, num_slots, sums);
  }
}

/// Adds `num_slots` slots to the sums of one word.
template <int kAtOnce, typename T, typename Slots, int kElements>
__device__ __forceinline__ void add_all_slots(Slots slots, int num_slots,
                                              float (&sums)[kElements]) {
  for (; num_slots >= kAtOnce; num_slots -= kAtOnce) {
    add_slots<kAtOnce, T>(slots, sums);
    slots.template skip<kAtOnce>();
  }
  add_last_slots<kAtOnce - 1, T>(slots, num_slots, sums);
}

/// Sets the sums of no slots. Adding a product to -0 gives the rounded product, and keeps the sign
/// of a zero.
template <int kElements>
__device__ __forceinline__ void start_sums(float (&sums)[kElements]) {
#pragma unroll
  for (float& sum : sums) sum = -0.0F;
}

template <typename T, int kElements>
__device__ __forceinline__ void write_sums(const float (&sums)[kElements], char* output) {
  Word<T, kElements> rounded;
#pragma unroll
  for (int j = 0; j < kElements; ++j) round_to(sums[j], &rounded.elements[j]);
  *reinterpret_cast<Word<T, kElements>*>(output) = rounded;
}

}  // namespace tessera::cuda
