// One warp selects for one token. Lane i has the experts e with e % 32 = i, in registers or, if
// there are many, in shared memory. Logits become integers of the same order, so that one
// instruction finds the largest of a warp.
#pragma once

#include <cstdint>

#include "cuda/parts/division.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/functions.cuh"
#include "cuda/select_experts/kernel.hpp"
#include "cuda/select_experts/ranks.cuh"
#include "cuda/select_experts/scores.cuh"

namespace tessera::cuda {

/// One token's selection. kIsPlain: neither a bias nor groups that are removed.
template <typename Experts, Scoring kScoring, bool kIsPlain>
class Selection {
 public:
  __device__ Selection(const SelectExpertsKernelArgs& args, const WarpMemory& memory)
      : args_(args), memory_(memory), experts_(args, memory) {}

  __device__ __forceinline__ void run(std::int64_t token) {
    load(token);
    sum_numerators();
    if constexpr (!kIsPlain) {
      if (args_.correction_bias != nullptr) add_bias();
      if (args_.topk_group < args_.num_expert_group) remove_groups();
    }
    take_slots();
    // Zeros after the last slot are added up with the others.
    const int num_zeros = -args_.top_k & (kSelectExpertsSlotsAtOnce - 1);
    if (lane() < num_zeros) memory_.slots()[args_.top_k + lane()].value = 0;
    if (kIsPlain || args_.correction_bias == nullptr) {
      turn_into_scores(args_, memory_.slots(), scores_);
    } else {
      __syncwarp();
    }
    write_slots(args_, token, memory_.slots());
  }

 private:
  __device__ __forceinline__ void load(std::int64_t token) {
    const std::int64_t first = token * args_.logits_stride;
    if constexpr (!kIsPlain && Experts::kAreRegisters) {
      if (args_.correction_bias != nullptr) experts_.load_bias(args_.correction_bias);
    }
    if (args_.dtype.bits == 32) {
      experts_.load_logits(static_cast<const float*>(args_.router_logits) + first);
    } else if (args_.dtype.code == kDLBfloat) {
      experts_.load_logits(static_cast<const __nv_bfloat16*>(args_.router_logits) + first);
    } else {
      experts_.load_logits(static_cast<const __half*>(args_.router_logits) + first);
    }
    experts_.for_each([&](int e, Expert& expert) {
      const bool exists = e < args_.num_experts;
      if (!exists || isnan(expert.score)) expert.score = -kInfinity;
      expert.key = exists ? key_of(expert.score) : kGone;
    });
  }

  /// Finds what the scores have in common.
  __device__ __forceinline__ void sum_numerators() {
    if constexpr (kScoring == Scoring::kSigmoid) return;
    scores_.set_largest(number_of(__reduce_max_sync(kAllLanes, largest_key_of_lane())));
    if (!scores_.have_divisor()) return;
    float sum = 0;
    experts_.for_each([&](int, const Expert& expert) {
      sum = __fadd_rn(sum, scores_.numerator_of(expert.score));
    });
    scores_.set_divisor(sum_of_warp(sum));
  }

  __device__ __forceinline__ std::uint32_t largest_key_of_lane() {
    std::uint32_t largest = kGone;
    experts_.for_each([&](int, const Expert& expert) { largest = max(largest, expert.key); });
    return largest;
  }

  /// Puts scores in the place of logits, and the order of the choice in that of the logits.
  __device__ __forceinline__ void add_bias() {
    experts_.for_each([&](int e, Expert& expert) {
      if (expert.key == kGone) return;
      const float bias = Experts::kAreRegisters ? expert.bias : args_.correction_bias[e];
      const float logit = expert.score;
      expert.score = scores_.score_of(logit);
      expert.key = key_with_bias(expert.score, bias, logit);
    });
  }

  /// Removes all groups but the topk_group best ones.
  __device__ __forceinline__ void remove_groups() {
    const int num_groups = args_.num_expert_group;
    if constexpr (Experts::kAreRegisters) {
      experts_.for_each([&](int e, const Expert& expert) {
        if (e < args_.num_experts) memory_.keys()[e] = expert.key;
      });
    }
    __syncwarp();
    find_group_keys();
    __syncwarp();
    if (num_groups <= kWarp) {
      const std::uint32_t own = lane() < num_groups ? memory_.group_keys()[lane()] : kGone;
      int num_better = 0;
#pragma unroll 4
      for (int other = 0; other < num_groups; ++other) {
        num_better += is_before(memory_.group_keys()[other], other, own, lane()) ? 1 : 0;
      }
      const unsigned stays = __ballot_sync(kAllLanes, num_better < args_.topk_group);
      keep_experts_of([&](std::uint32_t group) { return (stays >> group & 1) != 0; });
    } else {
      for (int group = lane(); group < num_groups; group += kWarp) {
        const std::uint32_t own = memory_.group_keys()[group];
        int num_better = 0;
        for (int other = 0; other < num_groups; ++other) {
          num_better += is_before(memory_.group_keys()[other], other, own, group) ? 1 : 0;
        }
        memory_.group_stays()[group] = num_better < args_.topk_group ? 1 : 0;
      }
      __syncwarp();
      keep_experts_of([&](std::uint32_t group) { return memory_.group_stays()[group] != 0; });
    }
  }

  template <typename Stays>
  __device__ __forceinline__ void keep_experts_of(const Stays& stays) {
    experts_.for_each([&](int e, Expert& expert) {
      const std::uint32_t group = divide(static_cast<std::uint32_t>(e), args_.by_group_size);
      if (e < args_.num_experts && !stays(group)) expert.key = kGone;
    });
  }

  /// Finds the key of each group's score. The lanes are divided among the groups.
  __device__ __forceinline__ void find_group_keys() {
    const int lanes = args_.lanes_per_group;
    const int lane_of_group = lane() % lanes;
    for (int first = 0; first < args_.num_expert_group; first += kWarp / lanes) {
      const int group = first + lane() / lanes;
      const std::uint32_t* const keys = memory_.keys() + group * args_.group_size;
      const int size = group < args_.num_expert_group ? args_.group_size : 0;
      std::uint32_t best = kGone;
      std::uint32_t second = kGone;
      // Lanes of other groups begin elsewhere, so that they read other banks.
      int i = lane_of_group + group * lanes;
      if (i >= size) i = lane_of_group;
#pragma unroll 8
      for (int count = lane_of_group; count < size; count += lanes) {
        second = max(second, min(best, keys[i]));
        best = max(best, keys[i]);
        i = i + lanes < size ? i + lanes : lane_of_group;
      }
      for (int apart = lanes / 2; apart > 0; apart /= 2) {
        const std::uint32_t others_best = __shfl_xor_sync(kAllLanes, best, apart);
        second =
            max(max(second, __shfl_xor_sync(kAllLanes, second, apart)), min(best, others_best));
        best = max(best, others_best);
      }
      if (args_.correction_bias != nullptr && args_.group_size > 1) {
        const float sum = __fadd_rn(number_of(best), number_of(second));
        best = key_of(isnan(sum) ? -kInfinity : sum);
      }
      if (size != 0 && lane_of_group == 0) memory_.group_keys()[group] = best;
    }
  }

  /// Finds the experts of the slots.
  __device__ __forceinline__ void take_slots() {
    if (args_.top_k > kMaxCandidates || !take_of_candidates()) take_one_by_one();
    __syncwarp();
  }

  /// Finds few experts among which those of all slots are, and ranks them. Returns false if they
  /// are too many.
  __device__ __forceinline__ bool take_of_candidates() {
    const std::uint32_t threshold = Experts::kAreFew ? kGone + 1 : least_key_of_candidates();
    memory_.candidates()[lane()] = kGone;
    __syncwarp();
    const std::uint32_t free = free_bits_of_keys(args_);
    int num_candidates = 0;
    // They are numbered by their ids. The lane of that number ranks a candidate.
    experts_.for_each([&](int e, const Expert& expert) {
      const unsigned lanes = __ballot_sync(kAllLanes, expert.key >= threshold);
      const int number = num_candidates + __popc(lanes & ((1U << lane()) - 1));
      num_candidates += __popc(lanes);
      if (expert.key >= threshold && number < kMaxCandidates) {
        memory_.candidates()[number] = with_place(expert.key, number, free);
        memory_.slots()[number] = {e, expert.score};
      }
    });
    __syncwarp();
    if (num_candidates > kMaxCandidates) return false;
    const Slot slot = memory_.slots()[lane()];
    const int rank = rank_of_lane(memory_.candidates(), num_candidates);
    __syncwarp();
    if (lane() < num_candidates && rank < args_.top_k) memory_.slots()[rank] = slot;
    return true;
  }

  /// A key that at least top_k experts reach: the least one of the lanes whose largest key, as
  /// bfloat16, is smaller than fewer than top_k others, or where lanes have none of all experts.
  __device__ __forceinline__ std::uint32_t least_key_of_candidates() {
    const std::uint32_t own = largest_key_of_lane();
    const float largest = own != kGone ? number_of(own) : -kInfinity;
    // Rounded towards zero, the larger of two numbers does not become the smaller one.
    const __nv_bfloat16 coarse =
        __ushort_as_bfloat16(static_cast<unsigned short>(__float_as_uint(largest) >> 16));
    reinterpret_cast<__nv_bfloat16*>(memory_.candidates())[lane()] = coarse;
    __syncwarp();
    const __nv_bfloat162 own_twice = __bfloat162bfloat162(coarse);
    __nv_bfloat162 num_larger = __float2bfloat162_rn(0);
#pragma unroll
    for (int i = 0; i < kWarp / 8; ++i) {
      const uint4 eight = reinterpret_cast<const uint4*>(memory_.candidates())[i];
      for (const std::uint32_t two : {eight.x, eight.y, eight.z, eight.w}) {
        const __nv_bfloat162 others = reinterpret_cast<const __nv_bfloat162&>(two);
        num_larger = __hadd2(num_larger, __hgt2(others, own_twice));
      }
    }
    __syncwarp();
    const float sum = __low2float(num_larger) + __high2float(num_larger);
    const bool is_among_them = sum < static_cast<float>(args_.top_k);
    return max(__reduce_min_sync(kAllLanes, is_among_them ? own : ~0U), kGone + 1);
  }

  /// Finds the experts of the slots one after the other.
  __device__ __forceinline__ void take_one_by_one() {
    std::uint32_t own = largest_key_of_lane();
    for (int slot = 0; slot < args_.top_k; ++slot) {
      const std::uint32_t largest = __reduce_max_sync(kAllLanes, own);
      const unsigned holders = __ballot_sync(kAllLanes, own == largest);
      int taker = __ffs(static_cast<int>(holders)) - 1;
      if (__popc(holders) > 1) taker = first_holder(own == largest, largest) % kWarp;
      if (lane() == taker) own = take(slot, largest);
    }
  }

  /// The first expert with this key, where several lanes have one.
  __device__ __forceinline__ int first_holder(bool is_holder, std::uint32_t key) {
    std::uint32_t first = ~0U;
    experts_.for_each([&](int e, const Expert& expert) {
      if (is_holder && expert.key == key) first = min(first, static_cast<std::uint32_t>(e));
    });
    return static_cast<int>(__reduce_min_sync(kAllLanes, first));
  }

  /// Gives a slot this lane's first expert with this key. Returns the largest key that is left.
  __device__ __forceinline__ std::uint32_t take(int slot, std::uint32_t key) {
    bool is_taken = false;
    std::uint32_t left = kGone;
    experts_.for_each([&](int e, Expert& expert) {
      if (!is_taken && expert.key == key) {
        is_taken = true;
        expert.key = kGone;
        memory_.slots()[slot] = {e, expert.score};
      }
      left = max(left, expert.key);
    });
    return left;
  }

  const SelectExpertsKernelArgs& args_;
  const WarpMemory& memory_;
  Experts experts_;
  Scores<kScoring> scores_;
};

}  // namespace tessera::cuda
