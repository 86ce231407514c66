// What a warp of select_experts works on: its shared memory, and the experts of each lane.
#pragma once

#include <cstdint>

#include "cuda/parts/carve.cuh"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxCandidates = kSelectExpertsMaxCandidates;

/// The key of an expert that is chosen already, or not to be chosen.
inline constexpr std::uint32_t kGone = 0;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

/// The shared memory of this warp.
struct WarpMemory {
  SelectExpertsLayout layout;
  unsigned char* memory;

  __device__ float* slot_values() const { return carve(memory, layout.slot_values); }
  __device__ std::int32_t* slot_ids() const { return carve(memory, layout.slot_ids); }
  __device__ std::uint32_t* candidates() const { return carve(memory, layout.candidates); }
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

  __device__ InRegisters(const SelectExpertsKernelArgs&, const WarpMemory&) {}

  /// Calls visit(e, expert) for each expert of this lane, and others past the last one.
  template <typename Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) visit(lane() + i * kWarp, experts_[i]);
  }

  /// Loads load(e) for each, all at once, and then calls visit(e, expert, loaded).
  template <typename Load, typename Visit>
  __device__ __forceinline__ void for_each_with(const Load& load, const Visit& visit) {
    decltype(load(0)) loaded[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) loaded[i] = load(lane() + i * kWarp);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) visit(lane() + i * kWarp, experts_[i], loaded[i]);
  }

 private:
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

  template <typename Load, typename Visit>
  __device__ __forceinline__ void for_each_with(const Load& load, const Visit& visit) {
    for_each([&](int e, Expert& expert) { visit(e, expert, load(e)); });
  }

 private:
  int num_experts_;
  std::uint32_t* keys_;
  float* scores_;
};

}  // namespace tessera::cuda
