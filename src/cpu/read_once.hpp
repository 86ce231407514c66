// Reads of the caller's inputs, which another thread may change during a call.
#pragma once

#include <cstdint>

namespace tessera::cpu {

/// The value at `address` at one moment. Of a plain load the compiler may make two, so that a value
/// that has passed a check is not the one that is used. It is the same instruction otherwise.
template <typename T>
T read_once(const T* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

/// map(expert) of the contract: -1 for a remote expert, and for what is no expert.
inline std::int32_t mapped_expert(const std::int32_t* expert_map, std::int32_t num_experts,
                                  std::int32_t expert) {
  if (expert < 0 || expert >= num_experts) return -1;
  const std::int32_t local = read_once(expert_map + expert);
  return local >= 0 && local < num_experts ? local : -1;
}

}  // namespace tessera::cpu
