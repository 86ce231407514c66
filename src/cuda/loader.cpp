#include "cuda/loader.hpp"

#include <dlfcn.h>

#include <string_view>

#include "core/once.hpp"
#include "core/uncancellable.hpp"

namespace tessera::cuda {
namespace {

constexpr const char* kFileName = "libtessera_cuda.so";
constexpr const char* kEntryPoint = "tessera_cuda_backend";

struct Loaded {
  const core::Backend* backend = nullptr;
  std::string why_not;
};

/// The folder of this library, where the backend is, too.
std::string own_folder() {
  Dl_info found{};
  if (dladdr(reinterpret_cast<const void*>(&load_backend), &found) == 0) return {};
  const std::string_view path = found.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string() : std::string(path.substr(0, slash + 1));
}

/// Why there is no backend at `path`: this build has none, or it was lost since.
std::string why_absent([[maybe_unused]] const std::string& path) {
#ifdef TESSERA_CUDA_LEFT_OUT
  return "this build has no CUDA backend: " TESSERA_CUDA_LEFT_OUT;
#else
  return "the CUDA backend that was built with this library is not beside it: " + path;
#endif
}

Loaded load() {
  const core::Uncancellable guard;
  const std::string path = own_folder() + kFileName;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const std::string reason = dlerror();
    const bool absent = reason.find("No such file") != std::string::npos &&
                        reason.find(kFileName) < reason.find("No such file");
    if (absent) return {nullptr, why_absent(path)};
    return {nullptr, "the CUDA backend does not load: " + reason};
  }
  // Never closed: a device may be running its code.
  const auto entry = reinterpret_cast<const core::Backend* (*)()>(dlsym(library, kEntryPoint));
  const core::Backend* backend = entry == nullptr ? nullptr : entry();
  if (backend == nullptr || backend->abi_size != sizeof(core::Backend) ||
      std::string_view(backend->version) != TESSERA_VERSION) {
    return {nullptr, path + " belongs to another version of Tessera"};
  }
  if (std::string reason = backend->unavailable(); !reason.empty()) return {nullptr, reason};
  return {backend, {}};
}

}  // namespace

const core::Backend* load_backend(std::string* why_not) {
  static std::atomic<const Loaded*> kept;
  const Loaded& loaded = core::once(&kept, load);
  if (loaded.backend == nullptr) *why_not = loaded.why_not;
  return loaded.backend;
}

}  // namespace tessera::cuda
