// The ops of this folder, each defined in the file of its name.
#pragma once

#include "tessera/ops.hpp"

namespace tessera::ops {

extern const OpEntry kAlignBlockSize;
extern const OpEntry kBatchedAlignBlockSize;
extern const OpEntry kFusedExperts;
extern const OpEntry kFusedMoe;
extern const OpEntry kLoraAlignBlockSize;
extern const OpEntry kMoePermute;
extern const OpEntry kMoeSum;
extern const OpEntry kMoeUnpermute;
extern const OpEntry kQuantizeFp8;
extern const OpEntry kSelectAndAlign;
extern const OpEntry kSelectExperts;

}  // namespace tessera::ops
