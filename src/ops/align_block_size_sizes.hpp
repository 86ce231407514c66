// The lengths of the outputs, for every op that aligns pairs.
#pragma once

#include <cstdint>

#include "core/validation.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::ops {

/// The capacity and the blocks in it. Refuses a capacity beyond int32; the numbers of `shape` must
/// each be in range.
bool output_sizes(const AlignBlockSizeShape& shape, core::Validator* check, std::int64_t* capacity,
                  std::int64_t* num_blocks);

}  // namespace tessera::ops
