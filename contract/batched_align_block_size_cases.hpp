// The table of cases that drives the tests of batched_align_block_size, and the generator that
// turns a case into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "case_arguments.hpp"
#include "tessera/batched_align_block_size.hpp"

namespace tessera::contract {

enum class BatchCounts {
  kUniform,   ///< every count equally likely, 0 and the maximum included
  kFull,      ///< every batch is full
  kEmpty,     ///< no batch has a token
  kOneBatch,  ///< one batch is full, the others are empty
  kBroken,    ///< uniform, but about one count in four is negative or above the maximum
};

struct BatchedAlignBlockSizeCase {
  std::string name;  ///< unique
  std::int64_t num_batches = 0;
  std::int64_t max_tokens_per_batch = 0;
  std::int64_t block_size = 1;
  BatchCounts counts = BatchCounts::kUniform;
  std::int32_t tail_expert = -1;
  std::int64_t extra_length = 0;  ///< elements by which the output buffers exceed the minimum
};

/// The table, written by hand and small enough to read.
std::span<const BatchedAlignBlockSizeCase> batched_align_block_size_cases();

/// A random case of any shape, with a capacity of at most `max_slots`. A pure function of its
/// arguments, on every platform.
BatchedAlignBlockSizeCase random_batched_align_block_size_case(std::uint64_t seed,
                                                               std::int64_t max_slots);

/// `expert_num_tokens` of a case, a pure function of case and seed on every platform.
std::vector<std::int32_t> make_counts(const BatchedAlignBlockSizeCase& c, std::uint64_t seed);

/// Smallest legal lengths of the outputs, by the contract.
BatchedAlignBlockSizeSizes smallest_sizes(const BatchedAlignBlockSizeCase& c);

CaseArguments make_arguments(const BatchedAlignBlockSizeCase& c, std::uint64_t seed);

}  // namespace tessera::contract
