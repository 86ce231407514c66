// The kernel that sums the weighted rows of each token.
#include "cuda/fused_experts/combine.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

/// CTAs that share a multiprocessor's registers. Few loads of a thread hide their latency only if
/// all threads that fit are there: 2048, or 1536 on devices such as 8.6 and 12.0.
constexpr int min_ctas(int rows_at_once) {
  if (rows_at_once > kFewSlots) return 0;  // left to the compiler
#if __CUDA_ARCH__ == 800 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
  return 2048 / kCombineThreads;
#else
  return 1536 / kCombineThreads;
#endif
}

template <typename T, int kRowsAtOnce>
__global__ void __launch_bounds__(kCombineThreads, min_ctas(kRowsAtOnce))
    combine(const __grid_constant__ CombineArgs args) {
  pdl_launch_dependents();
  pdl_wait();
  combine_part<T, kRowsAtOnce>(args, blockIdx.x, threadIdx.x, [] {});
}

template <typename T>
const void* kernel_of(bool has_few_slots) {
  return has_few_slots ? reinterpret_cast<const void*>(&combine<T, kFewSlots>)
                       : reinterpret_cast<const void*>(&combine<T, 8>);
}

}  // namespace

const void* combine_kernel(bool is_bfloat16, bool has_few_slots) {
  return is_bfloat16 ? kernel_of<__nv_bfloat16>(has_few_slots) : kernel_of<__half>(has_few_slots);
}

}  // namespace tessera::cuda
