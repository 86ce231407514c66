// Calls of any op through tessera_query and tessera_call.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tessera/context.hpp"
#include "tessera/ops.hpp"
#include "tessera/status.hpp"
#include "tessera/tessera.h"

namespace tessera::test {

/// The arguments of a C call, made from an argument struct and a context: all numbers and flags,
/// and the arrays that are given. A test may change them before a call.
class NamedCall {
 public:
  NamedCall(const OpEntry& op, const void* args, const Context& context);
  NamedCall(const NamedCall&) = delete;
  NamedCall& operator=(const NamedCall&) = delete;

  /// The argument of that name, which is there.
  tessera_argument& at(std::string_view name);

  Status query();
  Status run() const;

  std::vector<tessera_argument> arguments;
  tessera_call_args args{};  ///< points to `arguments`
};

/// Gives an argument this number, which is as number_in() returns it.
void set_value(std::int64_t number, const Argument& argument, tessera_argument* named);

/// Whether a NamedCall can express these arguments. A tessera_argument has no device, no data type
/// that no op takes, and neither data nor axes if the array is left out.
bool can_be_named(const OpEntry& op, const void* args, const Context& context);

}  // namespace tessera::test
