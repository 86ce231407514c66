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

/// No op's argument struct has more bytes.
inline constexpr std::size_t kMaxArgsBytes = 2048;

/// What a size query answers.
struct OpSizes {
  /// Values of the table's symbols, in its order: the lengths of the outputs among them.
  std::int64_t symbols[kMaxSymbols] = {};
  /// For the implementation that the same context selects.
  std::size_t workspace_bytes = 0;
};

/// Where a call that knows how much workspace it needs gets it. Less than `bytes` is refused as a
/// workspace in the context is.
struct WorkspaceSource {
  std::span<std::byte> (*get)(void* state, std::size_t bytes);
  void* state;
};

/// An op whose argument struct is known by its table alone. The functions are the op's own: `args`
/// points to its argument struct.
struct OpEntry {
  const Schema* schema;
  std::size_t args_bytes;
  const void* default_args;  ///< an argument struct as its constructor leaves it
  /// What the functions return where memory runs out. It outlives everything.
  const Status::Error* out_of_memory;

  Status (*call)(const void* args, const Context& context) noexcept;
  /// The same without a size query before it: the workspace is asked for when all else is checked.
  Status (*call_with)(const void* args, const Context& context,
                      const WorkspaceSource& source) noexcept;
  /// Reads numbers, data types and lengths of `args`, and no array's memory.
  Status (*sizes)(const void* args, const Context& context, OpSizes* sizes) noexcept;
  /// What a call would run and why not the others, fastest first. Reads what `sizes` reads.
  Status (*explain)(const void* args, const Context& context,
                    std::vector<ImplementationReport>* reports) noexcept;
};

/// All ops.
TESSERA_API std::span<const OpEntry> all_ops() noexcept;

/// The op of that name, or null.
TESSERA_API const OpEntry* find_op(std::string_view name) noexcept;

}  // namespace tessera
