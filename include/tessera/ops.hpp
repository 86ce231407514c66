// Every op by its table: for bindings, tools and tests that serve all ops alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"

namespace tessera {

/// The largest size of an op's argument struct.
inline constexpr std::size_t kMaxArgsBytes = 2048;

/// The result of a size query.
struct OpSizes {
  /// Values of the table's symbols, in its order. They include the lengths of the outputs.
  std::int64_t symbols[kMaxSymbols] = {};
  /// Workspace of the implementation that the same context selects.
  std::size_t workspace_bytes = 0;
};

/// A function that gives a call its workspace. A workspace of fewer than `bytes` is refused, like
/// one in the context.
struct WorkspaceSource {
  std::span<std::byte> (*get)(void* state, std::size_t bytes);
  void* state;
};

/// An op for callers that know its argument struct only by the table. `args` points to that struct.
struct OpEntry {
  const Schema* schema;
  std::size_t args_bytes;
  const void* default_args;  ///< an argument struct as its constructor leaves it
  /// The error that the functions return if memory runs out. It outlives everything.
  const Status::Error* out_of_memory;

  Status (*call)(const void* args, const Context& context) noexcept;
  /// A call without a size query before it: it takes its workspace from `source`, after all other
  /// checks.
  Status (*call_with)(const void* args, const Context& context,
                      const WorkspaceSource& source) noexcept;
  /// Reads numbers, data types and lengths of `args`, and no array's memory.
  Status (*sizes)(const void* args, const Context& context, OpSizes* sizes) noexcept;
  /// Lists the implementations, fastest first: which one a call would run, and why not the others.
  /// Reads as little as `sizes`.
  Status (*explain)(const void* args, const Context& context,
                    std::vector<ImplementationReport>* reports) noexcept;
};

/// All ops.
TESSERA_API std::span<const OpEntry> all_ops() noexcept;

/// The op of that name, or null.
TESSERA_API const OpEntry* find_op(std::string_view name) noexcept;

}  // namespace tessera
