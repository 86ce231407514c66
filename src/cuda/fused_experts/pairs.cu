// The expert of each pair, for ids that a map changes or whose rows lie apart.
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/division.cuh"
#include "cuda/parts/integers.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

__global__ void __launch_bounds__(kPairsThreads)
    find_experts(const __grid_constant__ PairsArgs args) {
  pdl_launch_dependents();
  pdl_wait();
  const std::uint32_t pair = blockIdx.x * kPairsThreads + threadIdx.x;
  if (pair >= static_cast<std::uint32_t>(args.num_pairs)) return;
  const std::uint32_t token = divide(pair, args.slots_per_token);
  const std::int64_t index = token * args.topk_ids_stride + (pair - token * args.top_k);
  std::int64_t expert = integer_at(args.topk_ids, args.ids_are_64_bit, index);
  if (expert < 0 || expert >= args.num_global_experts) {
    expert = -1;
  } else if (args.expert_map != nullptr) {
    expert = args.expert_map[expert];
  }
  const bool counts = expert >= 0 && expert < args.num_experts;
  args.experts[pair] = counts ? static_cast<std::int32_t>(expert) : -1;
}

}  // namespace

const void* pairs_kernel() { return reinterpret_cast<const void*>(&find_experts); }

}  // namespace tessera::cuda
