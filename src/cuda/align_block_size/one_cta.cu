// One CTA: every warp ranks its ids, the CTA lays out the groups, and every thread places its ids.
// If the call requests reports, a second CTA reports.
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/one_cta.cuh"
#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

static_assert(sizeof(ScanStorage) + sizeof(ReportStorage) <= kStaticSharedBytes);

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) one_cta_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  pdl_launch_dependents();
  prefetch_args(args);
  if (has_reporter(args) && blockIdx.x == 1) {
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), report_storage);
    return;
  }
  OneCta<kWidth, kNumThreads, Args> cta(args, shared, scan_storage);
  cta.clear();
  pdl_wait();
  cta.load_ids();
  cta.rank_ids();
  cta.lay_out_groups();
  cta.write_outputs();
}

template <int kNumThreads>
constexpr InstanceRow kRow{
    kNumThreads,
    {one_cta_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizePlainArgs>,
     one_cta_kernel<IdWidth::k32, kNumThreads, AlignBlockSizePlainArgs>,
     one_cta_kernel<IdWidth::k64, kNumThreads, AlignBlockSizePlainArgs>},
    {one_cta_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizeExtendedArgs>,
     one_cta_kernel<IdWidth::k32, kNumThreads, AlignBlockSizeExtendedArgs>,
     one_cta_kernel<IdWidth::k64, kNumThreads, AlignBlockSizeExtendedArgs>}};

}  // namespace

const void* align_block_size_one_cta_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {kRow<256>, kRow<512>};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
