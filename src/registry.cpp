// The one file that names every backend and every op.
#include <algorithm>
#include <string>
#include <string_view>

#include "core/backend.hpp"
#include "core/dispatch.hpp"
#include "core/environment.hpp"
#include "core/errors.hpp"
#include "cpu/backend.hpp"
#include "cuda/loader.hpp"
#include "ops/ops.hpp"
#include "tessera/info.hpp"

namespace tessera {

namespace core {

const Backend* find_backend(DLDeviceType device_type, std::string* why_not) {
  switch (device_type) {
    case kDLCPU:
      return &cpu::kBackend;
    case kDLCUDA:
      return cuda::load_backend(why_not);
    default:
      *why_not = "Tessera has no backend for it";
      return nullptr;
  }
}

bool may_exist(std::string_view implementation) {
  std::string why_not;
  const bool is_cuda = implementation.starts_with("cuda/");
  const Backend* backend = find_backend(is_cuda ? kDLCUDA : kDLCPU, &why_not);
  if (backend == nullptr) return true;
  return std::ranges::any_of(backend->ops, [&](const OpImplementations& op) {
    return std::ranges::find(op.implementations, implementation, &Implementation::name) !=
           op.implementations.end();
  });
}

}  // namespace core

std::span<const OpEntry> all_ops() noexcept {
  static const OpEntry entries[] = {ops::kAlignBlockSize,
                                    ops::kBatchedAlignBlockSize,
                                    ops::kLoraAlignBlockSize,
                                    ops::kMoePermute,
                                    ops::kMoeSum,
                                    ops::kMoeUnpermute,
                                    ops::kQuantizeFp8,
                                    ops::kFusedExperts,
                                    ops::kSelectExperts,
                                    ops::kFusedMoe,
                                    ops::kSelectAndAlign};
  return entries;
}

const OpEntry* find_op(std::string_view name) noexcept {
  for (const OpEntry& op : all_ops()) {
    if (op.schema->op == name) return &op;
  }
  return nullptr;
}

std::vector<BackendInfo> backends() try {
  std::string why_not;
  const core::Backend* cuda_backend = core::find_backend(kDLCUDA, &why_not);
  return {{"cpu", true, cpu::kBackend.detail()},
          {"cuda", cuda_backend != nullptr,
           cuda_backend != nullptr ? cuda_backend->detail() : why_not}};
} catch (...) {
  return {};
}

Status warmup(DLDevice device) try {
  std::string why_not;
  const core::Backend* backend = core::find_backend(device.device_type, &why_not);
  if (backend != nullptr) return backend->warmup(device);
  return core::refuse(StatusCode::kUnsupported, "warmup", "device",
                      "one that a backend of this build can use",
                      core::to_string(device) + "; " + why_not);
} catch (...) {
  static constexpr core::OutOfMemory kOutOfMemory("warmup");
  return kOutOfMemory.status();
}

const char* version() noexcept { return TESSERA_VERSION; }

const char* validate_default() noexcept try {
  return core::environment().validate.c_str();
} catch (...) {
  return "";
}

const char* build_description() noexcept {
  return
#if defined(__clang__)
      "clang " __clang_version__
#elif defined(__GNUC__)
      "gcc " __VERSION__
#endif
#ifdef NDEBUG
      ", optimised"
#else
      ", with assertions"
#endif
#ifdef TESSERA_CUDA_BUILD
      ", " TESSERA_CUDA_BUILD
#endif
      ;
}

}  // namespace tessera
