// Maps an id to its bucket, which has a counter in cpu/counting_sort. Buckets are numbered from 0:
// one per group, in the order of the groups, then the dropped ids, then the pairs of remote
// experts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/read_once.hpp"

namespace tessera::cpu {

/// An id as an unsigned number, at least as wide as an expert number. A negative id, sign-extended
/// and then read as unsigned, is larger than every expert.
template <typename Id>
using Unsigned = std::conditional_t<sizeof(Id) == 8, std::uint64_t, std::uint32_t>;

/// Groups are formed by global expert.
struct GlobalBuckets {
  static constexpr std::int32_t kFirstGroup = 0;
  std::uint32_t num_experts;

  template <typename Id>
  std::uint32_t operator()(Id id) const {
    return static_cast<std::uint32_t>(
        std::min<Unsigned<Id>>(static_cast<Unsigned<Id>>(id), num_experts));
  }
};

/// Groups are formed by local expert.
struct LocalBuckets {
  static constexpr std::int32_t kFirstGroup = 0;
  std::uint32_t num_experts;
  const std::int32_t* expert_map;

  template <typename Id>
  std::uint32_t operator()(Id id) const {
    const std::uint32_t expert = GlobalBuckets{num_experts}(id);
    const auto local =
        static_cast<std::uint32_t>(read_once(expert_map + std::min(expert, num_experts - 1)));
    if (expert == num_experts) return num_experts;
    return local < num_experts ? local : num_experts + 1;
  }
};

/// The pairs with id -1 form a group before the groups of `Inner`. For signed ids.
template <typename Inner>
struct FilteredBuckets {
  static constexpr std::int32_t kFirstGroup = -1;
  Inner inner;

  template <typename Id>
  std::uint32_t operator()(Id id) const {
    const std::uint32_t bucket = inner(id) + 1;
    return id == -1 ? 0 : bucket;
  }
};

}  // namespace tessera::cpu
