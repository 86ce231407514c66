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

/// One argument of a good call spoiled.
struct BadArgument {
  std::string what;  ///< "topk_ids of float32"
  std::function<void(void* args)> spoil;
  StatusCode code;
  std::string argument;  ///< as the message names it: "topk_ids.dtype"
  std::string got;       ///< how the message ends; empty: not foretold
};

/// Every way in which the table lets a single argument be wrong. `call` is good on the host.
std::vector<BadArgument> bad_arguments(GuardedCall& call);

/// Whether a message has the form "op: argument: expected ..., got ..." and ends as foretold.
bool has_house_form(const std::string& message, const std::string& op, const BadArgument& bad);

}  // namespace tessera::test
