// Reads of the caller's inputs, which another thread may change during a call.
#pragma once

#include <cstdint>

namespace tessera::cpu {

/// Loads the value at `address` exactly once. The compiler may turn one plain load into two, so
/// that the value that has passed a check is not the value that is used. The instruction is the
/// same.
template <typename T>
T read_once(const T* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

/// map(expert) of the contract: -1 for a remote expert, and for a number that is not an expert.
inline std::int32_t mapped_expert(const std::int32_t* expert_map, std::int32_t num_experts,
                                  std::int32_t expert) {
  if (expert < 0 || expert >= num_experts) return -1;
  const std::int32_t local = read_once(expert_map + expert);
  return local >= 0 && local < num_experts ? local : -1;
}

}  // namespace tessera::cpu
