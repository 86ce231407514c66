// Calls of the C API that are wrong before the op sees them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "named_call.hpp"

namespace tessera::test {

struct MalformedCall {
  std::function<void(NamedCall& call)> spoil;
  StatusCode code;
  /// "<op>: argument: expected ..., got ..."; without the op where the call names none.
  std::string message;
  bool names_op = true;
  bool by_query = true;  ///< refused by tessera_query, too
};

/// For calls of `op` whose arguments are all given.
std::vector<MalformedCall> malformed_calls(const OpEntry& op);

}  // namespace tessera::test
