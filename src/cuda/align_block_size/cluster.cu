// One thread block cluster: every CTA counts its own ids, and reads the counts of the others from
// their shared memory. If the call requests reports, a second cluster follows, whose first CTA
// reports.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/cluster.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
#if __CUDA_ARCH__ >= 900

static_assert(sizeof(ScanStorage) + sizeof(ReportStorage) <= kStaticSharedBytes);

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      ScanStorage& scan_storage) {
  const auto cluster = cooperative_groups::this_cluster();
  ClusterCta<kWidth, kNumThreads, Args> cta(args, num_ctas, shared, scan_storage);
  pdl_launch_dependents();
  cta.clear();
  pdl_wait();
  cta.load_ids();
  cta.rank_ids();
  cluster.sync();
  cta.lay_out_groups();
  // A CTA's shared memory must outlive the reads by the others.
  auto&& token = cluster.barrier_arrive();
  cta.write_outputs();
  cluster.barrier_wait(std::move(token));
}
#endif

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kNumThreads) cluster_kernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  const int num_ctas = has_reporter(args) ? gridDim.x / 2 : gridDim.x;
  const int cta = blockIdx.x;
  if (has_reporter(args) && cta >= num_ctas) {
    pdl_launch_dependents();
    if (cta > num_ctas) return;
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), report_storage);
  } else if (writes_plainly(args)) {
    place<kWidth>(AlignBlockSizePlainArgs{args.base}, num_ctas, shared, scan_storage);
  } else {
    place<kWidth>(args, num_ctas, shared, scan_storage);
  }
#endif
}

}  // namespace

const void* align_block_size_cluster_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {
      {kNumThreads,
       {cluster_kernel<IdWidth::kNarrow, AlignBlockSizePlainArgs>,
        cluster_kernel<IdWidth::k32, AlignBlockSizePlainArgs>,
        cluster_kernel<IdWidth::k64, AlignBlockSizePlainArgs>},
       {cluster_kernel<IdWidth::kNarrow, AlignBlockSizeExtendedArgs>,
        cluster_kernel<IdWidth::k32, AlignBlockSizeExtendedArgs>,
        cluster_kernel<IdWidth::k64, AlignBlockSizeExtendedArgs>}}};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
