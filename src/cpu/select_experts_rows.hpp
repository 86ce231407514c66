// select_experts for one instruction set. Included by one source for each, with a type Isa of its
// vectors: Floats and Ints of kLanes elements, load, store and widen, and what RouterFunctions and
// Row need of it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/floating_point.hpp"
#include "cpu/select_experts.hpp"
#include "cpu/select_experts_functions.hpp"

namespace tessera::cpu {
namespace {

using core::SelectExpertsProblem;

/// Below the key of every number: an expert that is chosen already, or not to be chosen.
constexpr std::int32_t kGone = std::numeric_limits<std::int32_t>::min();

/// Orders integers as the numbers are; equal numbers, such as -0 and +0, have the same key.
template <typename Ints, typename Floats>
Ints key_of(Floats number) {
  const auto bits = std::bit_cast<Ints>(number + 0.0F);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float number_of(std::int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

/// The experts of one token, in blocks of kSums. Arrays are padded to whole blocks, with -inf and
/// kGone.
template <typename Isa>
class Row {
 public:
  Row(const SelectExpertsProblem& problem, std::byte* scratch)
      : p_(problem),
        num_used_((problem.num_experts + Isa::kLanes - 1) / Isa::kLanes * Isa::kLanes),
        num_blocks_((problem.num_experts + kSums - 1) / kSums),
        values_(reinterpret_cast<float*>(scratch)),
        scores_(values_ + num_blocks_ * kSums),
        keys_(reinterpret_cast<std::int32_t*>(scores_ + num_blocks_ * kSums)),
        largest_(keys_ + num_blocks_ * kSums),
        groups_(reinterpret_cast<std::uint64_t*>(largest_ + num_blocks_ * kSums)) {
    std::fill(values_ + p_.num_experts, values_ + num_blocks_ * kSums, -kInfinity);
    std::fill(keys_ + p_.num_experts, keys_ + num_blocks_ * kSums, kGone);
    std::fill_n(largest_, (num_blocks_ + kSums - 1) / kSums * kSums, kGone);
  }

  void select(std::int64_t token) {
    load(token);
    make_keys([this](std::int64_t i) { return Isa::load(values_ + i); });
    score(number_of(*std::max_element(largest_, largest_ + num_blocks_)));
    if (p_.correction_bias != nullptr) add_bias();
    if (p_.topk_group < p_.num_expert_group) remove_groups();
    std::int32_t* const ids = p_.topk_ids + token * p_.top_k;
    for (std::int64_t slot = 0; slot < p_.top_k; ++slot) ids[slot] = take_largest();
    weigh(ids, p_.topk_weights + token * p_.top_k);
  }

 private:
  using Floats = typename Isa::Floats;
  using Ints = typename Isa::Ints;
  using Functions = RouterFunctions<Isa>;

  static Ints load_keys(const std::int32_t* from) {
    return std::bit_cast<Ints>(Isa::load(reinterpret_cast<const float*>(from)));
  }
  static void store_keys(std::int32_t* to, Ints keys) {
    Isa::store(reinterpret_cast<float*>(to), std::bit_cast<Floats>(keys));
  }

  void load(std::int64_t token) {
    const std::int64_t offset = token * p_.logits_stride;
    if (p_.dtype.code == kDLBfloat) {
      load(static_cast<const Bfloat16*>(p_.router_logits) + offset);
    } else if (p_.dtype.bits == 16) {
      load(static_cast<const Float16*>(p_.router_logits) + offset);
    } else {
      load(static_cast<const float*>(p_.router_logits) + offset);
    }
  }

  template <typename T>
  void load(const T* logits) {
    std::int64_t i = 0;
    for (; i + Isa::kLanes <= p_.num_experts; i += Isa::kLanes) {
      const Floats values = Isa::widen(logits + i);
      Isa::store(values_ + i, values == values ? values : Functions::all(-kInfinity));
    }
    for (; i < p_.num_experts; ++i) {
      const float value = to_float(logits[i]);
      values_[i] = value == value ? value : -kInfinity;
    }
  }

  /// Makes the keys of numbers_at(i), the numbers of experts from i on, and the largest of each
  /// block.
  template <typename NumbersAt>
  void make_keys(const NumbersAt& numbers_at) {
    for (std::int64_t i = 0; i < num_used_; i += Isa::kLanes) {
      store_keys(keys_ + i, key_of<Ints>(numbers_at(i)));
    }
    std::fill(keys_ + p_.num_experts, keys_ + num_used_, kGone);
    find_largest();
  }

  void find_largest() {
    for (std::int64_t block = 0; block < num_blocks_; ++block) {
      largest_[block] = Isa::largest(larger_of_block(keys_ + block * kSums));
    }
  }

  static Ints larger(Ints a, Ints b) { return a > b ? a : b; }

  /// The largest key of a block is in one of the lanes.
  static Ints larger_of_block(const std::int32_t* keys) {
    Ints most = load_keys(keys);
    for (int i = Isa::kLanes; i < kSums; i += Isa::kLanes) most = larger(most, load_keys(keys + i));
    return most;
  }

  /// Fills scores_, each of which is still to be divided by divisor_.
  void score(float most) {
    divisor_ = 1;
    if (most == -kInfinity) {
      for_all([](Floats) { return Floats{}; });
    } else if (most == kInfinity && p_.scoring != Scoring::kSigmoid) {
      for_all([](Floats v) { return v == kInfinity ? Functions::all(1) : Floats{}; });
      divisor_ = 0;
      for (std::int64_t i = 0; i < p_.num_experts; ++i) divisor_ += scores_[i];
    } else if (p_.scoring == Scoring::kSoftmax) {
      float sums[kSums] = {};
      for (std::int64_t i = 0; i < num_used_; i += Isa::kLanes) {
        const Floats scores = Functions::exponential(Isa::load(values_ + i) - most);
        Isa::store(scores_ + i, scores);
        float* const sum = sums + i % kSums;
        Isa::store(sum, Isa::load(sum) + scores);
      }
      divisor_ = sum_in_pairs(sums);
    } else if (p_.scoring == Scoring::kSigmoid) {
      for_all(Functions::sigmoid);
    } else {
      for_all(Functions::sqrt_softplus);
    }
  }

  template <typename Function>
  void for_all(const Function& function) {
    for (std::int64_t i = 0; i < num_used_; i += Isa::kLanes) {
      Isa::store(scores_ + i, function(Isa::load(values_ + i)));
    }
  }

  void add_bias() {
    auto* const bias = reinterpret_cast<float*>(groups_);
    std::copy_n(p_.correction_bias, p_.num_experts, bias);
    std::fill(bias + p_.num_experts, bias + num_blocks_ * kSums, 0.0F);
    make_keys([&](std::int64_t i) {
      const Floats sum = Isa::load(scores_ + i) / divisor_ + Isa::load(bias + i);
      const Floats least = Functions::all(-kInfinity);
      return sum != sum ? least : Isa::load(values_ + i) == least ? least : sum;
    });
  }

  std::int32_t key_of_group(std::int64_t group) const {
    const std::int64_t size = p_.group_size();
    const std::int32_t* const keys = keys_ + group * size;
    std::int32_t first = kGone;
    std::int32_t second = kGone;
    for (std::int64_t i = 0; i < size; ++i) {
      second = std::max(second, std::min(first, keys[i]));
      first = std::max(first, keys[i]);
    }
    if (p_.correction_bias == nullptr || size == 1) return first;
    const float sum = number_of(first) + number_of(second);
    return key_of<std::int32_t>(sum == sum ? sum : -kInfinity);
  }

  /// Removes all groups but the topk_group best ones.
  void remove_groups() {
    // Larger for a larger key, then for an earlier group.
    for (std::int64_t group = 0; group < p_.num_expert_group; ++group) {
      const auto key = static_cast<std::uint32_t>(key_of_group(group)) ^ 0x80000000U;
      groups_[group] = std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(group);
    }
    std::nth_element(groups_, groups_ + p_.topk_group, groups_ + p_.num_expert_group,
                     std::greater<>());
    for (std::int64_t i = p_.topk_group; i < p_.num_expert_group; ++i) {
      const std::int64_t group = ~static_cast<std::uint32_t>(groups_[i]);
      std::fill_n(keys_ + group * p_.group_size(), p_.group_size(), kGone);
    }
    find_largest();
  }

  /// The expert with the largest key, the first of equal ones; it is removed.
  std::int32_t take_largest() {
    const std::int64_t block = num_blocks_ == 1 ? 0 : block_of_largest();
    std::int32_t* const keys = keys_ + block * kSums;
    const int place = Isa::find(largest_[block], keys);
    set_largest(block, Isa::largest(remove(keys, place)));
    return static_cast<std::int32_t>(block * kSums + place);
  }

  /// The first block that has the largest key.
  std::int64_t block_of_largest() const {
    Ints most = larger_of_block(largest_);
    for (std::int64_t i = kSums; i < num_blocks_; i += kSums) {
      most = larger(most, larger_of_block(largest_ + i));
    }
    const std::int32_t key = Isa::largest(most);
    std::int64_t first = 0;
    while (first + kSums < num_blocks_ && !has(key, largest_ + first)) first += kSums;
    return first + Isa::find(key, largest_ + first);
  }

  /// Writes a vector at once: one that is loaded after a store to one of its lanes waits for it.
  void set_largest(std::int64_t block, std::int32_t key) {
    const std::int64_t first = block / Isa::kLanes * Isa::kLanes;
    const Ints all = load_keys(largest_ + first);
    const auto place = static_cast<std::int32_t>(block - first);
    store_keys(largest_ + first, Isa::kPlaces == place ? Ints{} + key : all);
  }

  static bool has(std::int32_t key, const std::int32_t* block) {
    return std::find(block, block + kSums, key) != block + kSums;
  }

  /// Removes an expert from a block. The largest key that is left is in one of the lanes.
  static Ints remove(std::int32_t* keys, int place) {
    Ints most = Ints{} + kGone;
    for (int i = 0; i < kSums; i += Isa::kLanes) {
      const Ints left = Isa::kPlaces == place - i ? Ints{} + kGone : load_keys(keys + i);
      store_keys(keys + i, left);
      most = larger(most, left);
    }
    return most;
  }

  void weigh(const std::int32_t* ids, float* weights) const {
    float sum = 0;
    for (std::int64_t slot = 0; slot < p_.top_k; ++slot) {
      weights[slot] = scores_[ids[slot]] / divisor_;
      sum += weights[slot];
    }
    const float divisor = p_.renormalize && sum != 0 ? sum : 1;
    for (std::int64_t slot = 0; slot < p_.top_k; ++slot) {
      weights[slot] = weights[slot] / divisor * p_.routed_scaling_factor;
    }
  }

  const SelectExpertsProblem& p_;
  std::int64_t num_used_;  // experts in whole vectors
  std::int64_t num_blocks_;
  float* values_;
  float* scores_;
  std::int32_t* keys_;
  std::int32_t* largest_;  // key of each block
  std::uint64_t* groups_;  // also used for the bias
  float divisor_ = 1;
};

/// SelectRows.
template <typename Isa>
void select_rows(const SelectExpertsProblem& problem, std::int64_t begin, std::int64_t end,
                 std::byte* scratch) {
  const DefaultFloatingPoint environment;
  Row<Isa> row(problem, scratch);
  for (std::int64_t token = begin; token < end; ++token) row.select(token);
}

}  // namespace
}  // namespace tessera::cpu
