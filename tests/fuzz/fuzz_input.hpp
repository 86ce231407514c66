// What the fuzz targets share; and how an input of align_block_size's encodes a call: a FuzzHeader,
// then expert_map if it is given, then the ids.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tessera/tessera.h"

namespace tessera::fuzz {

enum FuzzFlags : std::uint8_t {
  kGivesMap = 1,
  kGivesCounts = 2,
  kGivesDropped = 4,
  kIgnoresInvalidExperts = 8,
  kPadsSortedIds = 16,
  kMapsTail = 32,
  kFilteredGroup = 64,
  kGivesStatisticsAndValidation = 128,
};

struct FuzzHeader {
  std::int64_t block_size;
  std::int64_t num_experts;
  std::int32_t tail_expert;
  std::int32_t num_threads;
  std::int16_t sorted_extra;  ///< elements beyond the smallest legal size; negative: too short
  std::int16_t experts_extra;
  std::int16_t workspace_extra;
  std::uint8_t dtype;  ///< a tessera_dtype, or none
  std::uint8_t flags;  ///< FuzzFlags
};
static_assert(sizeof(FuzzHeader) == 32, "no padding: inputs are the bytes of the struct");

/// Larger problems are only asked for their sizes: the fuzzer would spend its time on memory.
inline constexpr std::int64_t kMaxExperts = 1 << 12;
inline constexpr std::int64_t kMaxElements = 1 << 18;

inline void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s; last error: %s\n", what.c_str(), tessera_last_error());
  std::abort();
}

/// The length of an output that an input asks to be too long or too short.
inline std::int64_t extended(std::int64_t length, std::int16_t extra) {
  return std::max<std::int64_t>(0, length + extra);
}

}  // namespace tessera::fuzz
