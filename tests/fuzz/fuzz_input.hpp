// What the fuzz targets share; and how an input of align_block_size's encodes a call: a FuzzHeader,
// then expert_map if it is given, then the ids, over and over in a long batch.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

#include "guarded_buffer.hpp"
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

/// The position of the workspace.
struct WorkspacePlace {
  std::int16_t extra;   ///< bytes beyond the smallest legal size; negative: too small
  std::uint8_t array;   ///< with small numbers it begins in this array of the call, 255: nowhere
  std::uint8_t offset;  ///< there, or past the alignment that memory has by default
};

struct FuzzHeader {
  std::int64_t block_size;
  std::int64_t num_experts;
  std::int32_t tail_expert;
  std::int32_t num_threads;
  std::int16_t sorted_extra;  ///< elements beyond the smallest legal size; negative: too short
  std::int16_t experts_extra;
  WorkspacePlace workspace;
  std::uint8_t dtype;       ///< a tessera_dtype, or none
  std::uint8_t flags;       ///< FuzzFlags
  std::uint8_t long_batch;  ///< 255: enough ids for several threads
  std::uint8_t unused[5];
};
static_assert(sizeof(FuzzHeader) == 40, "no padding: inputs are the bytes of the struct");

/// The start of an input of lora_align_block_size's; what follows fills its arrays, over and over.
struct LoraFuzzHeader {
  std::int64_t block_size;
  std::int64_t num_experts;
  std::int64_t max_loras;
  std::int64_t top_k;
  std::int64_t num_ids;
  std::int32_t tail_expert;
  WorkspacePlace workspace;
  std::int16_t sorted_extra;  ///< elements beyond the smallest legal size; negative: too short
  std::int16_t experts_extra;
  std::uint8_t num_lora_ids;
  std::uint8_t given;  ///< bits: adapter_enabled, lora_ids, expert_map, pad_sorted_ids
  std::uint8_t dtype;  ///< a tessera_dtype, or none
  std::uint8_t unused;
};
static_assert(sizeof(LoraFuzzHeader) == 56, "no padding: inputs are the bytes of the struct");

inline constexpr DLDataType kDtypes[] = {{kDLInt, 8, 1},   {kDLUInt, 8, 1}, {kDLInt, 16, 1},
                                         {kDLUInt, 16, 1}, {kDLInt, 32, 1}, {kDLUInt, 32, 1},
                                         {kDLInt, 64, 1},  {kDLUInt, 64, 1}};

/// Ids from which on align_block_size uses threads, and some more.
inline constexpr std::size_t kLongBatch = 70001;

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

/// A workspace as an input asks for, and whether it may be used.
class Workspace {
 public:
  /// `arrays` holds the other arrays of the call.
  Workspace(const WorkspacePlace& place, std::size_t min_bytes,
            std::span<const std::span<std::byte>> arrays)
      : own_(extended(static_cast<std::int64_t>(min_bytes), place.extra), place.offset),
        memory_(own_.span()) {
    is_good_ = memory_.size() >= min_bytes;
    if (place.array == 255) {
      memory_ = {};
      is_good_ = min_bytes == 0;
    } else if (place.array < arrays.size() && !arrays[place.array].empty()) {
      const std::span<std::byte> array = arrays[place.array];
      memory_ = {array.data() + place.offset % array.size(), memory_.size()};
      is_good_ = is_good_ && memory_.empty();
    }
  }

  std::byte* data() const { return memory_.data(); }
  std::size_t size() const { return memory_.size(); }
  bool is_good() const { return is_good_; }
  bool intact() { return own_.intact(); }

 private:
  test::GuardedBuffer<std::byte> own_;
  std::span<std::byte> memory_;
  bool is_good_ = false;
};

}  // namespace tessera::fuzz
