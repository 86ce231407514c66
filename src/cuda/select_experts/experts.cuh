// What a warp of select_experts works on: its shared memory, and the experts of each lane.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/parts/carve.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxCandidates = kSelectExpertsMaxCandidates;
using Slot = SelectExpertsSlot;

inline constexpr float kInfinity = INFINITY;

/// The key of an expert that is chosen already, or not to be chosen.
inline constexpr std::uint32_t kGone = 0;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % kWarp); }

/// The shared memory of this warp.
struct WarpMemory {
  const SelectExpertsLayout& layout;
  unsigned char* memory;

  // Where these two begin does not depend on the call.
  __device__ std::uint32_t* candidates() const { return reinterpret_cast<std::uint32_t*>(memory); }
  __device__ Slot* slots() const {
    return reinterpret_cast<Slot*>(memory + kMaxCandidates * sizeof(std::uint32_t));
  }
  __device__ std::uint32_t* group_keys() const { return carve(memory, layout.group_keys); }
  __device__ std::uint32_t* group_stays() const { return carve(memory, layout.group_stays); }
  __device__ std::uint32_t* keys() const { return carve(memory, layout.keys); }
  __device__ float* scores() const { return carve(memory, layout.scores); }
};

/// What a lane keeps of each of its experts.
struct Expert {
  std::uint32_t key;
  float score;  ///< at first the logit
  float bias;   ///< in registers alone
};

/// The experts of a lane, in registers.
template <int kPerLane>
class InRegisters {
 public:
  static constexpr bool kAreRegisters = true;
  static constexpr bool kAreFew = kPerLane == 1;  // no more than candidates

  __device__ InRegisters(const SelectExpertsKernelArgs& args, const WarpMemory&)
      : num_experts_(args.num_experts) {}

  /// Calls visit(e, expert) for each expert of this lane, and others past the last one.
  template <typename Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) visit(lane() + i * kWarp, experts_[i]);
  }

  __device__ __forceinline__ void load_bias(const float* bias) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane() + i * kWarp < num_experts_) experts_[i].bias = bias[lane() + i * kWarp];
    }
  }

  /// Loads all of a row before it computes anything.
  template <typename T>
  __device__ __forceinline__ void load_logits(const T* row) {
    T loaded[kPerLane] = {};
    const T* const of_lane = row + lane();
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane() + i * kWarp < num_experts_) loaded[i] = of_lane[i * kWarp];
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) experts_[i].score = to_float(loaded[i]);
  }

 private:
  int num_experts_;
  Expert experts_[kPerLane];
};

/// The same in shared memory, of which each lane uses what is its own.
class InMemory {
 public:
  static constexpr bool kAreRegisters = false;
  static constexpr bool kAreFew = false;

  __device__ InMemory(const SelectExpertsKernelArgs& args, const WarpMemory& memory)
      : num_experts_(args.num_experts), keys_(memory.keys()), scores_(memory.scores()) {}

  template <typename Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
    for (int first = 0; first < num_experts_; first += kWarp) {
      const int e = first + lane();
      Expert expert{keys_[e], scores_[e], 0};
      visit(e, expert);
      keys_[e] = expert.key;
      scores_[e] = expert.score;
    }
  }

  template <typename T>
  __device__ __forceinline__ void load_logits(const T* row) {
    for (int e = lane(); e < num_experts_; e += kWarp) scores_[e] = to_float(row[e]);
  }

 private:
  int num_experts_;
  std::uint32_t* keys_;
  float* scores_;
};

}  // namespace tessera::cuda
