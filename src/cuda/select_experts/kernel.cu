// A warp selects for one token. Lane i has the experts e with e % 32 = i, in registers or, if there
// are many, in shared memory. Logits become integers of the same order, so that one instruction
// finds the largest of a warp.
#include "cuda/parts/division.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/functions.cuh"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {
namespace {

using Args = SelectExpertsKernelArgs;

constexpr float kInfinity = INFINITY;

/// One token's selection. kIsPlain: neither a bias nor groups that are removed.
template <typename Experts, Scoring kScoring, bool kIsPlain>
class Selection {
 public:
  __device__ Selection(const Args& args, const WarpMemory& memory)
      : args_(args), memory_(memory), experts_(args, memory) {}

  __device__ __forceinline__ void run(std::int64_t token) {
    load(token);
    sum_exponentials();
    if constexpr (!kIsPlain) {
      if (args_.correction_bias != nullptr) add_bias();
      if (args_.topk_group < args_.num_expert_group) remove_groups();
    }
    take_slots();
    weigh();
    write(token);
  }

 private:
  __device__ __forceinline__ void load(std::int64_t token) {
    const std::int64_t first = token * args_.logits_stride;
    if (args_.dtype.bits == 32) {
      load_row(static_cast<const float*>(args_.router_logits) + first);
    } else if (args_.dtype.code == kDLBfloat) {
      load_row(static_cast<const __nv_bfloat16*>(args_.router_logits) + first);
    } else {
      load_row(static_cast<const __half*>(args_.router_logits) + first);
    }
  }

  /// Loads all logits and, into registers, the bias at once: nothing is computed in between.
  template <typename T>
  __device__ __forceinline__ void load_row(const T* logits) {
    struct Loaded {
      T logit;
      float bias;
    };
    const bool has_bias = !kIsPlain && Experts::kAreRegisters && args_.correction_bias != nullptr;
    experts_.for_each_with(
        [&](int e) {
          Loaded loaded{};
          if (e >= args_.num_experts) return loaded;
          loaded.logit = logits[e];
          if (has_bias) loaded.bias = args_.correction_bias[e];
          return loaded;
        },
        [&](int e, Expert& expert, const Loaded& loaded) {
          const float logit = to_float(loaded.logit);
          const bool exists = e < args_.num_experts;
          expert.score = exists && !isnan(logit) ? logit : -kInfinity;
          expert.key = exists ? key_of(expert.score) : kGone;
          expert.bias = loaded.bias;
        });
  }

  /// Finds the largest logit, and what the weights are divided by: the sum of a softmax, or the
  /// number of infinite logits, which share the weight.
  __device__ __forceinline__ void sum_exponentials() {
    if constexpr (kScoring == Scoring::kSigmoid) return;
    const float largest = number_of(__reduce_max_sync(kAllLanes, largest_key_of_lane()));
    is_shared_ = largest == kInfinity;
    largest_ = isinf(largest) ? 0 : largest;
    if (kScoring == Scoring::kSoftmax || is_shared_) {
      float sum = 0;
      experts_.for_each(
          [&](int, const Expert& expert) { sum = __fadd_rn(sum, numerator_of(expert.score)); });
#pragma unroll
      for (int half = kWarp / 2; half > 0; half /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, half));
      }
      divisor_ = largest == -kInfinity ? 1 : sum;
    }
  }

  __device__ __forceinline__ std::uint32_t largest_key_of_lane() {
    std::uint32_t largest = kGone;
    experts_.for_each([&](int, const Expert& expert) { largest = max(largest, expert.key); });
    return largest;
  }

  /// The score before the division by divisor_.
  __device__ __forceinline__ float numerator_of(float logit) const {
    if constexpr (kScoring == Scoring::kSigmoid) return sigmoid(logit);
    const float shared = logit == kInfinity ? 1 : 0;
    const float own = kScoring == Scoring::kSoftmax ? exponential(__fsub_rn(logit, largest_))
                                                    : sqrt_softplus(logit);
    return is_shared_ ? shared : own;
  }

  __device__ __forceinline__ float score_of(float logit) const {
    const float numerator = numerator_of(logit);
    return kScoring == Scoring::kSigmoid ? numerator : __fdiv_rn(numerator, divisor_);
  }

  /// Puts scores in the place of logits, and the order of the choice in that of the logits.
  __device__ __forceinline__ void add_bias() {
    experts_.for_each([&](int e, Expert& expert) {
      if (expert.key == kGone) return;
      const float bias = Experts::kAreRegisters ? expert.bias : args_.correction_bias[e];
      const bool counts = expert.score != -kInfinity;
      expert.score = score_of(expert.score);
      const float sum = __fadd_rn(expert.score, bias);
      expert.key = key_of(counts && !isnan(sum) ? sum : -kInfinity);
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
    for (int group = lane(); group < num_groups; group += kWarp) {
      const std::uint32_t own = memory_.group_keys()[group];
      int num_better = 0;
      for (int other = 0; other < num_groups; ++other) {
        num_better += is_before(memory_.group_keys()[other], other, own, group) ? 1 : 0;
      }
      memory_.group_stays()[group] = num_better < args_.topk_group ? 1 : 0;
    }
    __syncwarp();
    experts_.for_each([&](int e, Expert& expert) {
      if (expert.key == kGone) return;
      const std::uint32_t group = divide(static_cast<std::uint32_t>(e), args_.by_group_size);
      if (memory_.group_stays()[group] == 0) expert.key = kGone;
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
#pragma unroll 4
      for (int i = lane_of_group; i < size; i += lanes) {
        second = max(second, min(best, keys[i]));
        best = max(best, keys[i]);
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

  /// Whether a key comes before another one in the order of the choice.
  __device__ static bool is_before(std::uint32_t key, int place, std::uint32_t other,
                                   int others_place) {
    return key > other || (key == other && place < others_place);
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
    int num_candidates = 0;
    // They are numbered by their ids. The lane of that number ranks a candidate.
    experts_.for_each([&](int e, const Expert& expert) {
      const unsigned lanes = __ballot_sync(kAllLanes, expert.key >= threshold);
      const int number = num_candidates + __popc(lanes & ((1U << lane()) - 1));
      num_candidates += __popc(lanes);
      if (expert.key < threshold || number >= kMaxCandidates) return;
      memory_.candidates()[number] = expert.key;
      memory_.slot_ids()[number] = e;
      memory_.slot_values()[number] = expert.score;
    });
    __syncwarp();
    if (num_candidates > kMaxCandidates) return false;
    const std::uint32_t key = memory_.candidates()[lane()];
    const std::int32_t expert = memory_.slot_ids()[lane()];
    const float value = memory_.slot_values()[lane()];
    int rank = 0;
    for (int first = 0; first < num_candidates; first += 4) {
      const uint4 four = reinterpret_cast<const uint4*>(memory_.candidates())[first / 4];
      rank += is_before(four.x, first, key, lane()) ? 1 : 0;
      rank += is_before(four.y, first + 1, key, lane()) ? 1 : 0;
      rank += is_before(four.z, first + 2, key, lane()) ? 1 : 0;
      rank += is_before(four.w, first + 3, key, lane()) ? 1 : 0;
    }
    __syncwarp();
    if (lane() < num_candidates && rank < args_.top_k) {
      memory_.slot_ids()[rank] = expert;
      memory_.slot_values()[rank] = value;
    }
    return true;
  }

  /// A key that at least top_k experts reach: of the largest keys of all lanes the one in that
  /// place, or where lanes have none the least key of all.
  __device__ __forceinline__ std::uint32_t least_key_of_candidates() {
    const std::uint32_t own = largest_key_of_lane();
    memory_.candidates()[lane()] = own;
    __syncwarp();
    int num_larger = 0;
#pragma unroll
    for (int i = 0; i < kWarp / 4; ++i) {
      const uint4 four = reinterpret_cast<const uint4*>(memory_.candidates())[i];
      num_larger += (four.x > own ? 1 : 0) + (four.y > own ? 1 : 0) + (four.z > own ? 1 : 0) +
                    (four.w > own ? 1 : 0);
    }
    __syncwarp();
    const std::uint32_t reached =
        __reduce_min_sync(kAllLanes, num_larger < args_.top_k ? own : ~0U);
    return max(reached, kGone + 1);
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
        memory_.slot_ids()[slot] = e;
        memory_.slot_values()[slot] = expert.score;
      }
      left = max(left, expert.key);
    });
    return left;
  }

  /// Turns what the slots hold into weights, without the last division and factor. Zeros fill
  /// the last four, which are added up at once.
  __device__ __forceinline__ void weigh() {
    float* const values = memory_.slot_values();
    const bool are_logits = kIsPlain || args_.correction_bias == nullptr;
    for (int slot = lane(); slot < (args_.top_k + 3) / 4 * 4; slot += kWarp) {
      const float value = values[slot];
      values[slot] = slot >= args_.top_k ? 0 : are_logits ? score_of(value) : value;
    }
    __syncwarp();
    float sum = 0;
    if (args_.renormalize) {
      for (int first = 0; first < args_.top_k; first += 4) {
        const float4 four = reinterpret_cast<const float4*>(values)[first / 4];
        sum = __fadd_rn(__fadd_rn(sum, four.x), four.y);
        sum = __fadd_rn(__fadd_rn(sum, four.z), four.w);
      }
    }
    sum_of_weights_ = sum != 0 ? sum : 1;
  }

  __device__ __forceinline__ void write(std::int64_t token) const {
    for (int slot = lane(); slot < args_.top_k; slot += kWarp) {
      const std::int64_t to = token * args_.top_k + slot;
      args_.topk_weights[to] = __fmul_rn(__fdiv_rn(memory_.slot_values()[slot], sum_of_weights_),
                                         args_.routed_scaling_factor);
      args_.topk_ids[to] = memory_.slot_ids()[slot];
    }
  }

  const Args& args_;
  const WarpMemory& memory_;
  Experts experts_;
  float largest_ = 0;  // the largest logit, if it is finite
  float divisor_ = 1;
  float sum_of_weights_ = 1;
  bool is_shared_ = false;
};

__device__ __forceinline__ void write_padding(const Args& args, std::int64_t token) {
  for (int slot = lane(); slot < args.top_k; slot += kWarp) {
    args.topk_weights[token * args.top_k + slot] = 0;
    args.topk_ids[token * args.top_k + slot] = -1;
  }
}

template <typename Experts, Scoring kScoring, bool kIsPlain>
__global__ void select_experts_warps(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char memory[];
  pdl_launch_dependents();
  const std::uint32_t warp = threadIdx.x / kWarp;
  const std::int64_t token = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (token >= args.num_tokens) return;
  const SelectExpertsLayout layout = select_experts_layout(args, Experts::kAreRegisters);
  const WarpMemory of_warp{layout, memory + warp * layout.bytes()};
  pdl_wait();
  if (args.num_valid_tokens != nullptr && token >= *args.num_valid_tokens) {
    return write_padding(args, token);
  }
  Selection<Experts, kScoring, kIsPlain>(args, of_warp).run(token);
}

template <typename Experts, Scoring kScoring>
const void* kernel_of(bool is_plain) {
  return is_plain ? reinterpret_cast<const void*>(&select_experts_warps<Experts, kScoring, true>)
                  : reinterpret_cast<const void*>(&select_experts_warps<Experts, kScoring, false>);
}

template <typename Experts>
const void* kernel_of(Scoring scoring, bool is_plain) {
  switch (scoring) {
    case Scoring::kSoftmax:
      return kernel_of<Experts, Scoring::kSoftmax>(is_plain);
    case Scoring::kSigmoid:
      return kernel_of<Experts, Scoring::kSigmoid>(is_plain);
    default:
      return kernel_of<Experts, Scoring::kSqrtSoftplus>(is_plain);
  }
}

}  // namespace

const void* select_experts_kernel(int size, Scoring scoring, bool is_plain) {
  switch (size) {
    case 0:
      return kernel_of<InRegisters<1>>(scoring, is_plain);
    case 1:
      return kernel_of<InRegisters<2>>(scoring, is_plain);
    case 2:
      return kernel_of<InRegisters<4>>(scoring, is_plain);
    case 3:
      return kernel_of<InRegisters<8>>(scoring, is_plain);
    case 4:
      return kernel_of<InRegisters<16>>(scoring, is_plain);
    default:
      return kernel_of<InMemory>(scoring, is_plain);
  }
}

}  // namespace tessera::cuda
