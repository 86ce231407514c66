// The table of cases of lora_align_block_size, a generator of random cases, and the inputs of both.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "align_block_size_cases.hpp"
#include "tessera/lora_align_block_size.hpp"

namespace tessera::contract {

/// Which adapter each token uses.
enum class AdapterChoice {
  kUniform,  ///< every adapter, and no adapter, equally likely
  kRuns,     ///< the same, but the tokens of a request follow each other
  kOne,      ///< all tokens use the last adapter
  kNone,     ///< no token uses an adapter
  kBroken,   ///< like kUniform, but half of the values name no adapter
};

/// Which adapters are enabled, or in use.
enum class AdapterSet {
  kNotGiven,
  kAll,
  kEven,
  kNone,
  kBroken,  ///< like kEven, but enabled by any number except 0, or listed twice among values that
            ///< name no adapter
};

struct LoraAlignBlockSizeCase {
  AlignBlockSizeCase pairs;  ///< has the name of the case; extra_length applies to every row
  std::int64_t max_loras = 1;
  AdapterChoice choice = AdapterChoice::kUniform;
  AdapterSet enabled = AdapterSet::kNotGiven;
  AdapterSet in_use = AdapterSet::kNotGiven;
};

/// The table, written by hand and small enough to read.
std::span<const LoraAlignBlockSizeCase> lora_align_block_size_cases();

/// A random case, possibly with broken inputs, and N <= `max_ids`. A pure function of its
/// arguments.
LoraAlignBlockSizeCase random_lora_align_block_size_case(std::uint64_t seed, std::int64_t max_ids);

struct LoraAlignBlockSizeInputs {
  AlignBlockSizeInputs pairs;
  std::vector<std::int32_t> token_lora_mapping;
  std::optional<std::vector<std::int32_t>> adapter_enabled;
  std::optional<std::vector<std::int32_t>> lora_ids;
};

/// Inputs of a case, a pure function of case and seed on every platform.
LoraAlignBlockSizeInputs make_inputs(const LoraAlignBlockSizeCase& c, std::uint64_t seed);

CaseArguments make_arguments(const LoraAlignBlockSizeCase& c, std::uint64_t seed);

}  // namespace tessera::contract
