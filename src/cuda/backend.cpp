// The CUDA backend as a shared object of its own: its one exported symbol.
#include "core/backend.hpp"

#include "core/errors.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/batched_align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "cuda/fused_experts/launch.hpp"
#include "cuda/fused_moe/launch.hpp"
#include "cuda/lora_align_block_size/launch.hpp"
#include "cuda/moe_permute/launch.hpp"
#include "cuda/moe_sum/launch.hpp"
#include "cuda/moe_unpermute/launch.hpp"
#include "cuda/quantize_fp8/launch.hpp"
#include "cuda/select_and_align/launch.hpp"
#include "cuda/select_experts/launch.hpp"
#include "tessera/export.h"

namespace tessera::cuda {
namespace {

std::string detail() {
  std::string text;
  std::string why_none;
  const int num_devices = count_devices(&why_none);
  for (int id = 0; id < num_devices; ++id) {
    text +=
        (id == 0 ? "" : "; ") + core::to_string(DLDevice{kDLCUDA, id}) + " " + describe(id) +
        (can_run_on(id) ? ""
                        : ", for which this build has no code (it has " TESSERA_CUDA_ARCHITECTURES
                          ": CMAKE_CUDA_ARCHITECTURES chooses when it is built)");
  }
  return text;
}

std::string unavailable() {
  std::string why_none;
  const int num_devices = count_devices(&why_none);
  if (num_devices == 0) return why_none;
  for (int id = 0; id < num_devices; ++id) {
    if (can_run_on(id)) return {};
  }
  return detail();
}

Status warmup(DLDevice device) {
  constexpr std::string_view kOp = "warmup";
  Context context;
  context.device = device;
  if (Status s = check_context(kOp, context); !s.ok()) return s;
  const CurrentContext current(device.device_id);
  if (current.error() != CUDA_SUCCESS) {
    return core::refuse(StatusCode::kRuntimeError, kOp, "device", "a usable device",
                        text_of(current.error()));
  }
  if (Status s = load_align_block_size_kernels(kOp, device.device_id, current); !s.ok()) return s;
  if (Status s = load_batched_align_block_size_kernel(kOp, device.device_id, current); !s.ok()) {
    return s;
  }
  if (Status s = load_lora_align_block_size_kernels(kOp, device.device_id, current); !s.ok()) {
    return s;
  }
  if (Status s = load_moe_permute_kernels(kOp, device.device_id, current); !s.ok()) return s;
  if (Status s = load_moe_sum_kernels(kOp, device.device_id, current); !s.ok()) return s;
  if (Status s = load_moe_unpermute_kernels(kOp, device.device_id, current); !s.ok()) return s;
  if (Status s = load_quantize_fp8_kernels(kOp, device.device_id, current); !s.ok()) return s;
  if (Status s = load_select_experts_kernels(kOp, device.device_id, current); !s.ok()) return s;
  return load_fused_experts_kernels(kOp, device.device_id, current);
}

}  // namespace
}  // namespace tessera::cuda

extern "C" TESSERA_API const tessera::core::Backend* tessera_cuda_backend() {
  using namespace tessera::cuda;
  static const tessera::core::OpImplementations ops[] = {
      {"align_block_size", align_block_size_implementations()},
      {"batched_align_block_size", batched_align_block_size_implementations()},
      {"fused_experts", fused_experts_implementations()},
      {"fused_moe", fused_moe_implementations()},
      {"lora_align_block_size", lora_align_block_size_implementations()},
      {"moe_permute", moe_permute_implementations()},
      {"moe_sum", moe_sum_implementations()},
      {"moe_unpermute", moe_unpermute_implementations()},
      {"quantize_fp8", quantize_fp8_implementations()},
      {"select_and_align", select_and_align_implementations()},
      {"select_experts", select_experts_implementations()},
  };
  static const tessera::core::Backend backend{
      .version = TESSERA_VERSION,
      .unavailable = unavailable,
      .detail = detail,
      .check_context = check_context,
      .warmup = warmup,
      .ops = ops,
  };
  return &backend;
}
