// The tensors that kernels for compute capability 9.0a read by the copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/fused_experts/kernels.hpp"

namespace tessera::cuda {

/// WgmmaArgs::weights of a product.
CUresult encode_weights(const ProductArgs& args, int element_bytes, std::int64_t num_experts,
                        CUtensorMap* map);

/// WgmmaArgs::intermediate of the down product.
CUresult encode_intermediate(const ProductArgs& args, int element_bytes, std::int64_t num_rows,
                             CUtensorMap* map);

/// SwapAbProduct::weights.
CUresult encode_runs(const ProductArgs& args, int tile_rows, int element_bytes,
                     std::int64_t num_experts, CUtensorMap* map);

}  // namespace tessera::cuda
