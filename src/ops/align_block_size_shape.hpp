// The domain of a shape, and the sizes that follow from it: for every op that aligns pairs.
#pragma once

#include "core/validation.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::ops {

/// Checks the shape and computes the output sizes, all of them within int32. Leaves the workspace.
bool output_sizes(const AlignBlockSizeShape& shape, core::Validator* check,
                  AlignBlockSizeSizes* sizes);

}  // namespace tessera::ops
