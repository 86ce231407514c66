#include "contracts.hpp"

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "batched_align_block_size_cases.hpp"
#include "batched_align_block_size_checker.hpp"
#include "fused_experts_cases.hpp"
#include "fused_experts_checker.hpp"
#include "fused_moe_cases.hpp"
#include "fused_moe_checker.hpp"
#include "lora_align_block_size_cases.hpp"
#include "lora_align_block_size_checker.hpp"
#include "moe_permute_cases.hpp"
#include "moe_permute_checker.hpp"
#include "moe_sum_cases.hpp"
#include "moe_sum_checker.hpp"
#include "moe_unpermute_cases.hpp"
#include "moe_unpermute_checker.hpp"
#include "quantize_fp8_cases.hpp"
#include "quantize_fp8_checker.hpp"
#include "random_case.hpp"
#include "select_and_align_cases.hpp"
#include "select_and_align_checker.hpp"
#include "select_experts_cases.hpp"
#include "select_experts_checker.hpp"

namespace tessera::contract {
namespace {

const std::string& name_of(const auto& c) { return c.name; }
const std::string& name_of(const LoraAlignBlockSizeCase& c) { return c.pairs.name; }
const std::string& name_of(const SelectAndAlignCase& c) { return c.selection.name; }

/// A contract from functions of the op's own types: its table of cases, its random cases, and its
/// checker.
template <typename Args, auto kCases, auto kRandomCase, auto kCheck>
constexpr OpContract contract_of(std::string_view op, std::span<const Rule> rules,
                                 bool fixes_bits = true, PartlyWritten partly_written = {}) {
  return {op,
          rules,
          fixes_bits,
          partly_written,
          [] {
            std::vector<std::string> names;
            for (const auto& c : kCases()) names.push_back(name_of(c));
            return names;
          },
          [](std::string_view name, std::uint64_t seed) -> CaseArguments {
            if (const auto random = find_random_case(name)) {
              return make_arguments(kRandomCase(random->seed, random->size), seed);
            }
            for (const auto& c : kCases()) {
              if (name_of(c) == name) return make_arguments(c, seed);
            }
            return {};
          },
          [](const void* args) { return kCheck(*static_cast<const Args*>(args)); }};
}

constexpr OpContract kContracts[] = {
    contract_of<AlignBlockSizeArgs, align_block_size_cases, random_align_block_size_case,
                check_align_block_size>("align_block_size", kAlignBlockSizeRules),
    contract_of<BatchedAlignBlockSizeArgs, batched_align_block_size_cases,
                random_batched_align_block_size_case, check_batched_align_block_size>(
        "batched_align_block_size", kBatchedAlignBlockSizeRules),
    contract_of<FusedExpertsArgs, fused_experts_cases, random_fused_experts_case,
                check_fused_experts>("fused_experts", kFusedExpertsRules, /*fixes_bits=*/false),
    contract_of<FusedMoeArgs, fused_moe_cases, random_fused_moe_case, check_fused_moe>(
        "fused_moe", kFusedMoeRules, /*fixes_bits=*/false),
    contract_of<LoraAlignBlockSizeArgs, lora_align_block_size_cases,
                random_lora_align_block_size_case, check_lora_align_block_size>(
        "lora_align_block_size", kLoraAlignBlockSizeRules),
    contract_of<MoePermuteArgs, moe_permute_cases, random_moe_permute_case, check_moe_permute>(
        "moe_permute", kMoePermuteRules, /*fixes_bits=*/true,
        {"rows",
         [](const void* args) { return rows_in_use(*static_cast<const MoePermuteArgs*>(args)); }}),
    contract_of<MoeSumArgs, moe_sum_cases, random_moe_sum_case, check_moe_sum>("moe_sum",
                                                                               kMoeSumRules),
    contract_of<MoeUnpermuteArgs, moe_unpermute_cases, random_moe_unpermute_case,
                check_moe_unpermute>("moe_unpermute", kMoeUnpermuteRules),
    contract_of<QuantizeFp8Args, quantize_fp8_cases, random_quantize_fp8_case, check_quantize_fp8>(
        "quantize_fp8", kQuantizeFp8Rules),
    contract_of<SelectAndAlignArgs, select_and_align_cases, random_select_and_align_case,
                check_select_and_align>("select_and_align", kSelectAndAlignRules),
    contract_of<SelectExpertsArgs, select_experts_cases, random_select_experts_case,
                check_select_experts>("select_experts", kSelectExpertsRules),
};

}  // namespace

std::span<const OpContract> contracts() { return kContracts; }

const OpContract* find_contract(std::string_view op) {
  for (const OpContract& contract : kContracts) {
    if (contract.op == op) return &contract;
  }
  return nullptr;
}

}  // namespace tessera::contract
