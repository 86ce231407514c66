// Each CTA of a cluster selects for its own tokens, and ranks their pairs. Then the CTAs read each
// other's counts, and place the pairs. There is one barrier of the cluster in between, and no CTA
// reads the ids of another.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/cluster.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/select_and_align/instances.cuh"
#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_and_align/selection.cuh"

namespace tessera::cuda {
namespace {

using Args = SelectAndAlignKernelArgs;

constexpr int kNumThreads = kSelectAndAlignClusterThreads;

static_assert(sizeof(ScanStorage) + sizeof(Loads) <= kStaticSharedBytes);

template <int kPerLane, Scoring kScoring, bool kIsPlain>
__global__ void __launch_bounds__(kNumThreads, 1)
    select_and_align_cluster(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ Loads sums;
  const auto cluster = cooperative_groups::this_cluster();
  pdl_launch_dependents();
  ClusterCta<IdWidth::k32, kNumThreads, SelectAndAlignBlocksArgs> cta(
      args.blocks, static_cast<int>(gridDim.x), shared + args.blocks_memory, scan_storage, &sums);
  if (threadIdx.x == 0) sums = {};
  cta.clear();
  const int first = static_cast<int>(blockIdx.x) * args.tokens_per_cta;
  const int end = min(first + args.tokens_per_cta, static_cast<int>(args.selection.num_tokens));
  pdl_wait();
  select_for_tokens<kPerLane, kScoring, kIsPlain>(args.selection, first, end, kNumThreads / 32,
                                                  shared);
  __syncthreads();
  cta.load_ids();
  cta.rank_ids();
  cluster.sync();
  cta.lay_out_groups();
  // A CTA's shared memory must outlive the reads by the others.
  auto&& token = cluster.barrier_arrive();
  cta.write_outputs();
  cluster.barrier_wait(std::move(token));
#endif
}

struct Kernels {
  template <int kPerLane, Scoring kScoring, bool kIsPlain>
  static auto of() {
    return &select_and_align_cluster<kPerLane, kScoring, kIsPlain>;
  }
};

}  // namespace

const void* select_and_align_cluster_kernel(const SelectAndAlignInstance& instance) {
  return find_kernel<Kernels>(instance);
}

}  // namespace tessera::cuda
