#include "cpu/backend.hpp"

#include <array>

#include "core/dispatch.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/batched_align_block_size.hpp"
#include "cpu/lora_align_block_size.hpp"

namespace tessera::cpu {
namespace {

constexpr std::array<core::AlignBlockSizeImplementation, 2> kAlignBlockSize{{
    {"cpu/counting_sort", counting_sort_workspace_bytes, align_block_size_counting_sort, nullptr,
     nullptr},
    {"cpu/reference", reference_workspace_bytes, align_block_size_reference, nullptr, nullptr},
}};

std::string unavailable() { return {}; }

std::string detail() {
  return "up to " + std::to_string(core::max_threads(Context{})) + " thread(s)";
}

Status check_context(std::string_view, const Context&) { return {}; }

Status warmup(DLDevice) { return {}; }

}  // namespace

constinit const core::Backend kBackend{
    .version = TESSERA_VERSION,
    .unavailable = unavailable,
    .detail = detail,
    .check_context = check_context,
    .warmup = warmup,
    .align_block_size = kAlignBlockSize,
    .batched_align_block_size = batched_align_block_size,
    .lora_align_block_size = {nullptr, lora_workspace_bytes, lora_align_block_size},
};

}  // namespace tessera::cpu
