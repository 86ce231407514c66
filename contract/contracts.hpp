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

struct OpContract {
  std::string_view op;
  std::span<const Rule> rules;  ///< in the order in which they are checked
  bool fixes_bits;              ///< all correct outputs are the same to the last bit

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
