// A warp selects for one token.
#include "cuda/parts/pdl.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/kernel.hpp"
#include "cuda/select_experts/scores.cuh"
#include "cuda/select_experts/token.cuh"

namespace tessera::cuda {
namespace {

using Args = SelectExpertsKernelArgs;

template <typename Experts, Scoring kScoring, bool kIsPlain>
__global__ void select_experts_warps(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char memory[];
  pdl_launch_dependents();
  const std::uint32_t warp = threadIdx.x / kWarp;
  const std::int64_t token = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (token >= args.num_tokens) return;
  const WarpMemory of_warp{args.layout, memory + warp * args.layout.bytes()};
  pdl_wait();
  if (args.num_valid_tokens != nullptr && token >= *args.num_valid_tokens) {
    return write_padding(args, token);
  }
  Selection<Experts, kScoring, kIsPlain>(args, of_warp).run(token);
}

template <typename Experts, Scoring kScoring>
const void* kernel_of(bool is_plain) {
  return is_plain ? reinterpret_cast<const void*>(&select_experts_warps<Experts, kScoring, true>)
                  : reinterpret_cast<const void*>(&select_experts_warps<Experts, kScoring, false>);
}

template <typename Experts>
const void* kernel_of(Scoring scoring, bool is_plain) {
  switch (scoring) {
    case Scoring::kSoftmax:
      return kernel_of<Experts, Scoring::kSoftmax>(is_plain);
    case Scoring::kSigmoid:
      return kernel_of<Experts, Scoring::kSigmoid>(is_plain);
    default:
      return kernel_of<Experts, Scoring::kSqrtSoftplus>(is_plain);
  }
}

}  // namespace

const void* select_experts_kernel(int size, Scoring scoring, bool is_plain) {
  switch (size) {
    case 0:
      return kernel_of<InRegisters<1>>(scoring, is_plain);
    case 1:
      return kernel_of<InRegisters<2>>(scoring, is_plain);
    case 2:
      return kernel_of<InRegisters<4>>(scoring, is_plain);
    case 3:
      return kernel_of<InRegisters<8>>(scoring, is_plain);
    case 4:
      return kernel_of<InRegisters<16>>(scoring, is_plain);
    default:
      return kernel_of<InMemory>(scoring, is_plain);
  }
}

}  // namespace tessera::cuda
