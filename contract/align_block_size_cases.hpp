// The table of cases that drives the C++ tests, the Python tests, `tessera verify`, the fuzz seeds
// and the benchmarks; and the generator that turns a case into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "case_arguments.hpp"
#include "random_case.hpp"
#include "tessera/align_block_size.hpp"

namespace tessera::contract {

enum class IdDistribution {
  kUniform,    ///< every expert equally likely
  kZipf,       ///< popularity falls with rank^-1.2, ranks in a random order of the experts
  kOneExpert,  ///< every token's first slot goes to one expert
  kSorted,     ///< uniform, then sorted over all pairs
};

enum class BrokenIds {
  kNone,
  kSome,  ///< about one id in eight is -1, E, the type's smallest or its largest value
  kAll,   ///< every id lies outside [0, E)
};

enum class MapKind {
  kNone,
  kIdentity,
  kHalfRemote,  ///< odd experts are remote, even ones numbered in order
  kAllRemote,
  kBroken,  ///< like kHalfRemote, with entries outside [-1, E) among the remote ones
  kMerged,  ///< two global experts share one local number
};

struct AlignBlockSizeCase {
  std::string name;  ///< unique; also names the case on command lines
  std::int64_t num_tokens = 0;
  std::int64_t num_experts = 1;
  std::int64_t top_k = 1;
  std::int64_t block_size = 1;
  DLDataType dtype{kDLInt, 32, 1};
  IdDistribution distribution = IdDistribution::kUniform;
  BrokenIds broken = BrokenIds::kNone;
  MapKind map = MapKind::kNone;
  bool ignore_invalid_experts = false;
  bool pad_sorted_ids = false;
  std::int32_t tail_expert = -1;
  bool map_tail = false;
  bool filtered_group = false;
  bool statistics = false;        ///< requested
  bool validation = false;        ///< requested
  std::int64_t extra_length = 0;  ///< elements by which the output buffers exceed the minimum
  bool benchmark = false;         ///< belongs to the benchmark's default set of shapes
};

/// The table, written by hand and small enough to read.
std::span<const AlignBlockSizeCase> align_block_size_cases();

/// A random case of any shape, possibly with broken ids or map, with N <= `max_ids` <=
/// kMaxRandomSize, up to 2^20 experts and blocks of up to 2^18. A pure function of its arguments,
/// on every platform.
AlignBlockSizeCase random_align_block_size_case(std::uint64_t seed, std::int64_t max_ids);

/// The case of this name, from the table or, for "random:<seed>:<max_ids>", a random one.
std::optional<AlignBlockSizeCase> find_case(std::string_view name);

/// Number of experts below E that the case's type can represent.
std::int64_t nameable_experts(const AlignBlockSizeCase& c);

/// A JSON object with the fields of the case and `num_ids`; enumerators are lowercase words without
/// the k, `dtype` is "int32" and so on.
std::string to_json(const AlignBlockSizeCase& c);

/// The table as a JSON array.
std::string align_block_size_cases_json();

/// Inputs of a case, a pure function of case and seed on every platform.
struct AlignBlockSizeInputs {
  std::vector<std::byte> topk_ids;  ///< num_tokens * top_k elements of the case's dtype
  std::optional<std::vector<std::int32_t>> expert_map;
};

/// A token's ids do not repeat unless top_k exceeds num_experts or the distribution forces it.
AlignBlockSizeInputs make_inputs(const AlignBlockSizeCase& c, std::uint64_t seed);

/// Smallest legal lengths of the outputs, by the contract.
AlignBlockSizeSizes smallest_sizes(const AlignBlockSizeCase& c);

/// Asks for expert_counts and num_dropped, and for the other optional outputs that the case does.
CaseArguments make_arguments(const AlignBlockSizeCase& c, std::uint64_t seed);

}  // namespace tessera::contract
