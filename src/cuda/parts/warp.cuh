// What the threads of a warp share.
#pragma once

namespace tessera::cuda {

inline constexpr unsigned kAllLanes = ~0u;

}  // namespace tessera::cuda
