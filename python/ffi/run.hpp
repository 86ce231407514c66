// A call of an op from Python, once its arguments are read: workspace and interpreter lock.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>

#include "conversions.hpp"
#include "python.hpp"

namespace tessera::python {

/// Calls on the host whose first input, outputs and counters are all below this take some ten
/// microseconds.
constexpr std::int64_t kLongCall = 16384;

/// Whether a call may take long: other threads of Python run meanwhile. To release the interpreter
/// lock costs a short call more than they gain.
inline bool may_take_long(const OpEntry& op, Arguments& arguments, bool is_on_host) {
  const auto is_large = [&](const Argument& row) {
    return row.is_output() ? arguments.view(row).num_elements >= kLongCall
                           : row.symbol >= 0 && number_in(arguments.get(), row) >= kLongCall;
  };
  // Experts' weights take long to read.
  const auto is_weights = [](const Argument& row) { return row.extents.ndim == 3; };
  const Argument& first = op.schema->inputs.front();
  return !is_on_host || arguments.view(first).num_elements >= kLongCall ||
         std::ranges::any_of(op.schema->outputs, is_large) ||
         std::ranges::any_of(op.schema->numbers, is_large) ||
         std::ranges::any_of(op.schema->inputs.subspan(1), is_weights);
}

/// Where a call gets its workspace. On a device it is the caller's. On the host each thread keeps
/// up to kKeptBytes for its next calls; a call that needs more takes memory of its own and gives it
/// back.
class Workspace {
 public:
  static constexpr std::size_t kKeptBytes = std::size_t{1} << 20;

  Workspace(bool is_on_host, std::span<std::byte> given) : is_on_host_(is_on_host), given_(given) {}

  /// Bytes that the call asked for and that there are not: none were given, or the host has none.
  std::size_t lacking() const { return lacking_; }

  WorkspaceSource source() {
    return {[](void* state, std::size_t bytes) {
              auto* self = static_cast<Workspace*>(state);
              const std::span<std::byte> found = self->get(bytes);
              if (found.data() == nullptr) self->lacking_ = bytes;
              return found;
            },
            this};
  }

 private:
  std::span<std::byte> get(std::size_t bytes) {
    if (!is_on_host_ || bytes == 0) return given_;
    if (bytes > kKeptBytes) {
      own_.reset(new (std::nothrow) std::byte[bytes]);
      return {own_.get(), own_ == nullptr ? 0 : bytes};
    }
    thread_local std::unique_ptr<std::byte[]> kept;
    thread_local std::size_t kept_bytes = 0;
    if (kept_bytes < bytes) {
      kept.reset(new (std::nothrow) std::byte[bytes]);
      kept_bytes = kept == nullptr ? 0 : bytes;
    }
    return {kept.get(), kept == nullptr ? 0 : bytes};
  }

  bool is_on_host_;
  std::span<std::byte> given_;
  std::unique_ptr<std::byte[]> own_;
  std::size_t lacking_ = 0;
};

/// Runs a call. Returns 0, or, where a call on a device needs a workspace and got none, its bytes:
/// nothing has run then.
inline std::int64_t run(const OpEntry& op, Arguments& arguments, const Context& context,
                        std::span<std::byte> workspace = {}) {
  const bool is_on_host = context.device.device_type == kDLCPU;
  Workspace memory(is_on_host, workspace);
  void* const thread = may_take_long(op, arguments, is_on_host) ? PyEval_SaveThread() : nullptr;
  const Status status = op.call_with(arguments.get(), context, memory.source());  // never throws
  if (thread != nullptr) PyEval_RestoreThread(thread);
  if (memory.lacking() == 0) {
    throw_unless_ok(status);
  } else if (is_on_host) {
    TVM_FFI_THROW(RuntimeError) << op.schema->op << ": workspace: expected " << memory.lacking()
                                << " bytes of host memory, got none";
  }
  return static_cast<std::int64_t>(memory.lacking());
}

}  // namespace tessera::python
