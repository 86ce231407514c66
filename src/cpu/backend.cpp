#include "cpu/backend.hpp"

#include "core/dispatch.hpp"
#include "core/fused_moe.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/batched_align_block_size.hpp"
#include "cpu/fused_experts.hpp"
#include "cpu/lora_align_block_size.hpp"
#include "cpu/moe_permute.hpp"
#include "cpu/moe_sum.hpp"
#include "cpu/moe_unpermute.hpp"
#include "cpu/quantize_fp8.hpp"
#include "cpu/select_and_align.hpp"
#include "cpu/select_experts.hpp"

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

constexpr core::Implementation kMoePermute[] = {
    implementation<core::MoePermuteProblem, moe_permute_by_tokens>("cpu/tokens"),
    implementation<core::MoePermuteProblem, moe_permute_reference,
                   moe_permute_reference_workspace_bytes>("cpu/reference"),
};

constexpr core::Implementation kMoeSum[] = {
    implementation<core::MoeSumProblem, moe_sum_avx512, nullptr, moe_sum_avx512_refusal>(
        "cpu/avx512"),
    implementation<core::MoeSumProblem, moe_sum_avx2, nullptr, moe_sum_avx2_refusal>("cpu/avx2"),
    implementation<core::MoeSumProblem, moe_sum_portable>("cpu/portable"),
    implementation<core::MoeSumProblem, moe_sum_reference>("cpu/reference"),
};

constexpr core::Implementation kMoeUnpermute[] = {
    implementation<core::MoeUnpermuteProblem, moe_unpermute_avx512, nullptr,
                   moe_unpermute_avx512_refusal>("cpu/avx512"),
    implementation<core::MoeUnpermuteProblem, moe_unpermute_avx2, nullptr,
                   moe_unpermute_avx2_refusal>("cpu/avx2"),
    implementation<core::MoeUnpermuteProblem, moe_unpermute_portable>("cpu/portable"),
    implementation<core::MoeUnpermuteProblem, moe_unpermute_reference>("cpu/reference"),
};

constexpr core::Implementation kQuantizeFp8[] = {
    implementation<core::QuantizeFp8Problem, quantize_fp8_avx2, nullptr, quantize_fp8_avx2_refusal>(
        "cpu/avx2"),
    implementation<core::QuantizeFp8Problem, quantize_fp8_portable>("cpu/portable"),
    implementation<core::QuantizeFp8Problem, quantize_fp8_reference>("cpu/reference"),
};

constexpr core::Implementation kFusedExperts[] = {
    implementation<core::FusedExpertsProblem, fused_experts_avx512_bf16,
                   fused_experts_avx512_bf16_workspace_bytes, fused_experts_avx512_bf16_refusal>(
        "cpu/avx512_bf16"),
    implementation<core::FusedExpertsProblem, fused_experts_avx512,
                   fused_experts_avx512_workspace_bytes, fused_experts_avx512_refusal>(
        "cpu/avx512"),
    implementation<core::FusedExpertsProblem, fused_experts_avx2,
                   fused_experts_avx2_workspace_bytes, fused_experts_avx2_refusal>("cpu/avx2"),
    implementation<core::FusedExpertsProblem, fused_experts_portable,
                   fused_experts_portable_workspace_bytes>("cpu/portable"),
    implementation<core::FusedExpertsProblem, fused_experts_reference,
                   fused_experts_reference_workspace_bytes>("cpu/reference"),
};

constexpr core::Implementation kSelectExperts[] = {
    implementation<core::SelectExpertsProblem, select_experts_avx2, select_experts_workspace_bytes,
                   select_experts_avx2_refusal>("cpu/avx2"),
    implementation<core::SelectExpertsProblem, select_experts_portable,
                   select_experts_workspace_bytes>("cpu/portable"),
    implementation<core::SelectExpertsProblem, select_experts_reference,
                   select_experts_reference_workspace_bytes>("cpu/reference"),
};

/// By these elements of the two lists above.
template <std::size_t kSelection, std::size_t kExperts>
constexpr core::Implementation kBothOf =
    core::FusedMoe<[] { return kSelectExperts[kSelection]; },
                   [] { return kFusedExperts[kExperts]; }>::descriptor();

// Every processor with AVX-512 has AVX2.
constexpr core::Implementation kFusedMoe[] = {kBothOf<0, 0>, kBothOf<0, 1>, kBothOf<0, 2>,
                                              kBothOf<1, 3>, kBothOf<2, 4>};

constexpr core::Implementation kSelectAndAlign[] = {
    implementation<core::SelectAndAlignProblem,
                   select_and_align<select_experts_avx2, align_block_size_counting_sort>,
                   select_and_align_workspace_bytes<select_experts_workspace_bytes,
                                                    counting_sort_workspace_bytes>,
                   select_and_align_avx2_refusal>("cpu/avx2"),
    implementation<core::SelectAndAlignProblem,
                   select_and_align<select_experts_portable, align_block_size_counting_sort>,
                   select_and_align_workspace_bytes<select_experts_workspace_bytes,
                                                    counting_sort_workspace_bytes>>("cpu/portable"),
    implementation<core::SelectAndAlignProblem,
                   select_and_align<select_experts_reference, align_block_size_reference>,
                   select_and_align_workspace_bytes<select_experts_reference_workspace_bytes,
                                                    reference_workspace_bytes>>("cpu/reference"),
};

constexpr core::OpImplementations kOps[] = {
    {"align_block_size", kAlignBlockSize},
    {"batched_align_block_size", kBatchedAlignBlockSize},
    {"lora_align_block_size", kLoraAlignBlockSize},
    {"moe_permute", kMoePermute},
    {"moe_sum", kMoeSum},
    {"moe_unpermute", kMoeUnpermute},
    {"quantize_fp8", kQuantizeFp8},
    {"fused_experts", kFusedExperts},
    {"select_experts", kSelectExperts},
    {"fused_moe", kFusedMoe},
    {"select_and_align", kSelectAndAlign},
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
