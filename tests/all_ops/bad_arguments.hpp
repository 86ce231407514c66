// Wrong arguments of any op, made from its table.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "guarded_call.hpp"
#include "tessera/context.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {

/// A good call with one wrong argument.
struct BadArgument {
  std::string what;  ///< "topk_ids of float32"
  std::function<void(void* args)> spoil;
  StatusCode code;
  std::string argument;  ///< as the message names it: "topk_ids.dtype"
  std::string got;       ///< the expected end of the message; empty: any
};

/// Every way in which a single argument can break the table. `call` must be valid on the host.
std::vector<BadArgument> bad_arguments(GuardedCall& call);

/// Whether a message has the form "op: argument: expected ..., got ..." and has the expected end.
bool has_house_form(const std::string& message, const std::string& op, const BadArgument& bad);

}  // namespace tessera::test
