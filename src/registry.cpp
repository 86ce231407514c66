// The one file that names every backend and every implementation.
#include <array>

#include "core/align_block_size_implementation.hpp"
#include "core/errors.hpp"
#include "cpu/align_block_size.hpp"
#include "tessera/info.hpp"

namespace tessera {

namespace core {

std::span<const AlignBlockSizeImplementation> align_block_size_implementations() {
  static constexpr std::array<AlignBlockSizeImplementation, 2> kImplementations{{
      {{"cpu/counting_sort", kDLCPU},
       cpu::counting_sort_workspace_bytes,
       cpu::align_block_size_counting_sort},
      {{"cpu/reference", kDLCPU}, cpu::reference_workspace_bytes, cpu::align_block_size_reference},
  }};
  return kImplementations;
}

}  // namespace core

std::vector<BackendInfo> backends() {
  const int threads = core::max_threads(Context{});
  return {{"cpu", true, "up to " + std::to_string(threads) + " thread(s)"},
          {"cuda", false, "this build has no CUDA backend"}};
}

const char* version() noexcept { return TESSERA_VERSION; }

const char* build_description() noexcept {
  return
#if defined(__clang__)
      "clang " __clang_version__
#elif defined(__GNUC__)
      "gcc " __VERSION__
#endif
#ifdef NDEBUG
      ", optimised";
#else
      ", with assertions";
#endif
}

}  // namespace tessera
