#include "cpu/backend.hpp"

#include "core/dispatch.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/batched_align_block_size.hpp"
#include "cpu/lora_align_block_size.hpp"

namespace tessera::cpu {
namespace {

using core::implementation;

constexpr core::Implementation kAlignBlockSize[] = {
    implementation<core::AlignBlockSizeProblem, align_block_size_counting_sort,
                   counting_sort_workspace_bytes>("cpu/counting_sort"),
    implementation<core::AlignBlockSizeProblem, align_block_size_reference,
                   reference_workspace_bytes>("cpu/reference"),
};

constexpr core::Implementation kBatchedAlignBlockSize[] = {
    implementation<core::BatchedAlignBlockSizeProblem, batched_align_block_size>("cpu/reference"),
};

constexpr core::Implementation kLoraAlignBlockSize[] = {
    implementation<core::LoraAlignBlockSizeProblem, lora_align_block_size, lora_workspace_bytes>(
        "cpu/reference"),
};

constexpr core::OpImplementations kOps[] = {
    {"align_block_size", kAlignBlockSize},
    {"batched_align_block_size", kBatchedAlignBlockSize},
    {"lora_align_block_size", kLoraAlignBlockSize},
};

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
    .ops = kOps,
};

}  // namespace tessera::cpu
