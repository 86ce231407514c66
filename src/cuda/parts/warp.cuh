// Constants of a warp.
#pragma once

namespace tessera::cuda {

inline constexpr unsigned kAllLanes = ~0u;

}  // namespace tessera::cuda
