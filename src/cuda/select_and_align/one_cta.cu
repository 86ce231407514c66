// One CTA selects for all tokens, and then aligns the pairs.
#include "cuda/align_block_size/one_cta.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/select_and_align/instances.cuh"
#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_and_align/selection.cuh"

namespace tessera::cuda {
namespace {

using Args = SelectAndAlignKernelArgs;

constexpr int kNumThreads = kSelectAndAlignOneCtaThreads;

static_assert(sizeof(ScanStorage) + sizeof(Loads) <= kStaticSharedBytes);

template <int kPerLane, Scoring kScoring, bool kIsPlain>
__global__ void __launch_bounds__(kNumThreads, 1)
    select_and_align_one_cta(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ Loads sums;
  pdl_launch_dependents();
  OneCta<IdWidth::k32, kNumThreads, SelectAndAlignBlocksArgs> cta(
      args.blocks, shared + args.blocks_memory, scan_storage, &sums);
  if (threadIdx.x == 0) sums = {};
  cta.clear();
  pdl_wait();
  select_for_tokens<kPerLane, kScoring, kIsPlain>(
      args.selection, 0, static_cast<int>(args.selection.num_tokens), kNumThreads / 32, shared);
  __syncthreads();
  cta.load_ids();
  cta.rank_ids();
  cta.lay_out_groups();
  cta.write_outputs();
}

struct Kernels {
  template <int kPerLane, Scoring kScoring, bool kIsPlain>
  static auto of() {
    return &select_and_align_one_cta<kPerLane, kScoring, kIsPlain>;
  }
};

}  // namespace

const void* select_and_align_one_cta_kernel(const SelectAndAlignInstance& instance) {
  return find_kernel<Kernels>(instance);
}

}  // namespace tessera::cuda
