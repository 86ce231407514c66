// The contracts of all ops by name: for tests, tools and bindings that serve all ops alike.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "case_arguments.hpp"
#include "random_case.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// An output whose last rows a call leaves as they were, as it does the memory between rows.
struct PartlyWritten {
  std::string_view array;  ///< empty: a call writes all elements of its outputs
  /// The number of rows that a finished call has written, from its other outputs, all arrays in
  /// host memory; outputs that hold anything else may give any number.
  std::int64_t (*num_rows)(const void* args) = nullptr;
};

struct OpContract {
  std::string_view op;
  std::span<const Rule> rules;  ///< in the order in which they are checked
  bool fixes_bits;              ///< all correct outputs are the same to the last bit
  PartlyWritten partly_written;

  /// Names of the cases in the op's table.
  std::vector<std::string> (*case_names)();

  /// The arguments of a case, a pure function of name and seed on every platform. The case is one
  /// from the table or a random one, "random:SEED:SIZE" with SIZE at most kMaxRandomSize; its
  /// arrays have at most about SIZE elements. `args` is null if there is no such case.
  CaseArguments (*arguments)(std::string_view name, std::uint64_t seed);

  /// Judges a finished call by its argument struct, all arrays in host memory.
  std::vector<Violation> (*check)(const void* args);
};

std::span<const OpContract> contracts();

/// The contract of the op with this name, or null.
const OpContract* find_contract(std::string_view op);

}  // namespace tessera::contract
