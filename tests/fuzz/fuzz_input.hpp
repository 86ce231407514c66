// How bytes encode a call of any op: a FuzzHead; for each argument in the table's order a
// NumberPart or an ArrayPart; then what fills the arrays of inputs, over and over.
#pragma once

#include <cstdint>

#include "tessera/ops.hpp"
#include "tessera/schema.hpp"

namespace tessera::fuzz {

struct FuzzHead {
  std::uint8_t op;           ///< number in all_ops(), modulo their number
  std::uint8_t num_threads;  ///< modulo 5
  std::uint8_t moved;        ///< this array of the call begins where another does; kNone: none
  std::uint8_t moved_to;     ///< that other
  std::int16_t extra_bytes;  ///< of the workspace beyond the smallest legal size; negative: too few
  std::uint8_t
      workspace_in;     ///< the array that it begins in; kNowhere: null; kNone: its own memory
  std::uint8_t offset;  ///< there, or past the alignment that memory has by default
};
static_assert(sizeof(FuzzHead) == 8, "no padding: inputs are the bytes of the struct");

inline constexpr std::uint8_t kNone = 254;
inline constexpr std::uint8_t kNowhere = 255;

struct NumberPart {
  std::int64_t value;
};

enum ArrayFlags : std::uint8_t {
  kGiven = 1,
  kWithoutMemory = 2,
  kStrided = 4,
  kTransposed = 8,
};

/// What makes no sense to the C API.
enum Malformation : std::uint8_t {
  kUnnamed = 1,
  kUnknown = 2,
  kNamedTwice = 3,
  kHasManyAxes = 4,
  kHasNumber = 5,
};

struct ArrayPart {
  std::int32_t lengths[kMaxAxes];  ///< where they give a symbol its value, or any will do
  std::int16_t extra;              ///< elements beyond the length that the table asks for
  std::uint8_t axis;               ///< of `extra`
  std::uint8_t dtype;              ///< index into dtypes::kAll, or one of no op
  std::uint8_t flags;              ///< ArrayFlags
  std::uint8_t offset;             ///< bytes past the alignment that memory has by default
  std::uint8_t malformation;       ///< a Malformation; any other number: none
  std::uint8_t unused;
};
static_assert(sizeof(ArrayPart) == 24, "no padding: inputs are the bytes of the struct");

/// Whether a table's length is `ArrayPart::lengths`, rather than what sizes ask for.
inline bool is_free(const Length& length) {
  return length.bound == Length::Bound::kGives ||
         (length.bound == Length::Bound::kAtLeast && length.symbol < 0 && length.constant == 0);
}

}  // namespace tessera::fuzz
