// The warps of a CTA share one token, where few tokens leave the others idle. Each has a part of
// the experts, one for each lane, and lists the best of its part in order. A part is a group, or 32
// neighbours where no group is removed.
#include <cstdint>

#include "cuda/parts/floats.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/functions.cuh"
#include "cuda/select_experts/kernel.hpp"
#include "cuda/select_experts/ranks.cuh"
#include "cuda/select_experts/scores.cuh"

namespace tessera::cuda {
namespace {

using Args = SelectExpertsPartsArgs;

constexpr int kMaxParts = kSelectExpertsMaxParts;

struct SharedMemory {
  alignas(16) std::uint32_t keys[kMaxParts][kWarp];        // of a part's experts
  alignas(16) std::uint32_t list_keys[kMaxParts * kWarp];  // lists, one after the other
  Slot list_slots[kMaxParts * kWarp];                      // their experts
  alignas(16) std::uint32_t part_keys[kMaxParts];          // the scores of parts
  alignas(16) Slot slots[kWarp];
  float numerators[kMaxParts * kWarp];  // by expert
};

template <Scoring kScoring, bool kHasBias>
class PartOfToken {
 public:
  __device__ PartOfToken(const Args& args, SharedMemory& memory)
      : args_(args),
        memory_(memory),
        part_(static_cast<int>(threadIdx.x / kWarp)),
        expert_(part_ * args.part_size + lane()),
        exists_(lane() < args.part_size && expert_ < args.of_warp.num_experts) {}

  /// Before run().
  __device__ __forceinline__ void load(std::int64_t token) {
    // Zeros after the last slot are added up with the others.
    if (part_ == 0) memory_.slots[lane()].value = 0;
    if (!exists_) return;
    const std::int64_t place = token * args_.of_warp.logits_stride + expert_;
    if constexpr (kHasBias) bias_ = args_.of_warp.correction_bias[expert_];
    logit_ = float_at(args_.of_warp.router_logits, args_.of_warp.dtype, place);
  }

  __device__ __forceinline__ void run(std::int64_t token) {
    if (isnan(logit_)) logit_ = -kInfinity;
    if constexpr (kHasBias) {
      add_bias();
    } else {
      key_ = exists_ ? key_of(logit_) : kGone;
    }
    write_part_key();
    __syncthreads();
    if constexpr (!kHasBias && kScoring != Scoring::kSigmoid) {
      scores_.set_largest(number_of(largest_part_key()));
      write_numerator();
    }
    list_best_of_part();
    __syncthreads();
    fill_slots();
    __syncthreads();
    if (part_ != 0) return;
    if constexpr (!kHasBias && kScoring != Scoring::kSigmoid) set_divisor();
    if constexpr (!kHasBias) turn_into_scores(args_.of_warp, memory_.slots, scores_);
    write_slots(args_.of_warp, token, memory_.slots);
  }

 private:
  /// Turns the logit into a score, and orders by its sum with the bias.
  __device__ __forceinline__ void add_bias() {
    if constexpr (kScoring != Scoring::kSigmoid) {
      memory_.part_keys[part_] = __reduce_max_sync(kAllLanes, key_of(logit_));
      __syncthreads();
      scores_.set_largest(number_of(largest_part_key()));
      write_numerator();
      __syncthreads();
      set_divisor();
    }
    value_ = scores_.score_of(logit_);
    key_ = exists_ ? key_with_bias(value_, bias_, logit_) : kGone;
  }

  __device__ __forceinline__ void write_numerator() {
    if (exists_ && scores_.have_divisor()) {
      memory_.numerators[expert_] = scores_.numerator_of(logit_);
    }
  }

  __device__ __forceinline__ void set_divisor() {
    if (!scores_.have_divisor()) return;
    float sum = 0;
    for (int e = lane(); e < args_.of_warp.num_experts; e += kWarp) {
      sum = __fadd_rn(sum, memory_.numerators[e]);
    }
    scores_.set_divisor(sum_of_warp(sum));
  }

  /// Writes the score of this part's group: the largest key, or with a bias the key of the sum of
  /// the two largest.
  __device__ __forceinline__ void write_part_key() {
    std::uint32_t score = __reduce_max_sync(kAllLanes, key_);
    if (kHasBias && args_.part_size > 1) {
      const bool is_largest = key_ == score;
      const bool is_twice = __popc(__ballot_sync(kAllLanes, is_largest)) > 1;
      const std::uint32_t second = __reduce_max_sync(kAllLanes, is_largest ? kGone : key_);
      const float sum = __fadd_rn(number_of(score), number_of(is_twice ? score : second));
      score = key_of(isnan(sum) ? -kInfinity : sum);
    }
    if (lane() == 0) memory_.part_keys[part_] = score;
  }

  __device__ __forceinline__ std::uint32_t largest_part_key() const {
    return __reduce_max_sync(kAllLanes,
                             lane() < args_.num_parts ? memory_.part_keys[lane()] : kGone);
  }

  /// Whether this part's group is not removed.
  __device__ __forceinline__ bool stays() const {
    const std::uint32_t own = memory_.part_keys[part_];
    const bool is_better = lane() < args_.num_parts && lane() != part_ &&
                           is_before(memory_.part_keys[lane()], lane(), own, part_);
    return __popc(__ballot_sync(kAllLanes, is_better)) < args_.num_that_stay;
  }

  /// Lists this part's experts in the order of the choice, as many as may be chosen; none of a part
  /// that is removed.
  __device__ __forceinline__ void list_best_of_part() {
    std::uint32_t* const list = memory_.list_keys + (part_ << args_.list_shift);
    stays_ = stays();
    if (!stays_) {
      if (lane() < 1 << args_.list_shift) list[lane()] = kGone;
      return;
    }
    std::uint32_t* const keys = memory_.keys[part_];
    keys[lane()] = exists_ ? with_place(key_, lane(), free_bits_of_keys(args_.of_warp))
                           : static_cast<std::uint32_t>(kWarp - 1 - lane());
    __syncwarp();
    const int rank = rank_of_lane(keys, kWarp);
    if (rank < 1 << args_.list_shift) {
      list[rank] = key_;
      memory_.list_slots[(part_ << args_.list_shift) + rank] = {expert_,
                                                                kHasBias ? value_ : logit_};
    }
  }

  /// Puts those of this part's list into the token's slots that are among its best. The lanes are
  /// divided among the list's experts, and the keys of all lists, four at once, among the lanes of
  /// each.
  __device__ __forceinline__ void fill_slots() {
    if (!stays_) return;
    constexpr int kFoursAtOnce = 4;
    const int size = 1 << args_.list_shift;
    const int fours_shift = args_.list_shift - 2;
    const int place = lane() & (size - 1);
    const int own = (part_ << args_.list_shift) + place;
    const std::uint32_t key = memory_.list_keys[own];
    const int num_fours = args_.num_parts << fours_shift;
    KeyCount before;
#pragma unroll 1
    for (int first = lane() >> args_.list_shift; first < num_fours;
         first += kFoursAtOnce * (kWarp >> args_.list_shift)) {
#pragma unroll
      for (int i = 0; i < kFoursAtOnce; ++i) {
        const int four = first + i * (kWarp >> args_.list_shift);
        const int part = four >> fours_shift;
        // Of equal keys those of an earlier part come first. No key reaches the last one.
        const bool counts = four < num_fours && part != part_;
        const std::uint32_t least = counts ? part < part_ ? key : key + 1 : ~0U;
        before.add(reinterpret_cast<const uint4*>(memory_.list_keys)[counts ? four : 0], least);
      }
    }
    int rank = before.sum();
#pragma unroll
    for (int apart = kSelectExpertsMinList; apart < kWarp; apart *= 2) {
      const int other = __shfl_xor_sync(kAllLanes, rank, apart);
      if (apart >= size) rank += other;
    }
    rank += place;
    if (lane() < size && key != kGone && rank < args_.of_warp.top_k) {
      memory_.slots[rank] = memory_.list_slots[own];
    }
  }

  const Args& args_;
  SharedMemory& memory_;
  int part_;
  int expert_;
  bool exists_;
  float logit_ = -kInfinity;
  float bias_ = 0;
  float value_ = 0;  // with a bias the score
  std::uint32_t key_ = kGone;
  bool stays_ = false;
  Scores<kScoring> scores_;
};

template <Scoring kScoring, bool kHasBias>
__global__ void select_experts_parts(const __grid_constant__ Args args) {
  __shared__ SharedMemory memory;
  pdl_launch_dependents();
  const std::int64_t token = blockIdx.x;
  PartOfToken<kScoring, kHasBias> part(args, memory);
  pdl_wait();
  part.load(token);
  if (args.of_warp.num_valid_tokens != nullptr && token >= *args.of_warp.num_valid_tokens) {
    if (threadIdx.x < kWarp) write_padding(args.of_warp, token);
    return;
  }
  part.run(token);
}

template <Scoring kScoring>
const void* kernel_of(bool has_bias) {
  return has_bias ? reinterpret_cast<const void*>(&select_experts_parts<kScoring, true>)
                  : reinterpret_cast<const void*>(&select_experts_parts<kScoring, false>);
}

}  // namespace

const void* select_experts_parts_kernel(Scoring scoring, bool has_bias) {
  switch (scoring) {
    case Scoring::kSoftmax:
      return kernel_of<Scoring::kSoftmax>(has_bias);
    case Scoring::kSigmoid:
      return kernel_of<Scoring::kSigmoid>(has_bias);
    default:
      return kernel_of<Scoring::kSqrtSoftplus>(has_bias);
  }
}

}  // namespace tessera::cuda
