// Where and with what a call runs.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "tessera/tensor_view.hpp"

namespace tessera {

/// The defaults run on the host, on as many threads as pay, with the fastest implementation.
struct Context {
  DLDevice device = kHostDevice;

  /// The device's stream (a cudaStream_t); ignored on the host. One of another device is refused.
  void* stream = nullptr;

  /// Scratch memory on `device`, at least as large as the op's size query says, of any alignment
  /// and content. Two calls that may run at the same time need two workspaces.
  std::span<std::byte> workspace;

  /// Host threads a call may use, at most, and never more than TESSERA_NUM_THREADS; 0 stands for
  /// that, or, where it is unset, for the cores that this process can keep busy when the call runs:
  /// the cores in the affinity of its main thread or of the caller, but no more than the CPU quota
  /// of its control groups. The affinity may change between the size query and the call. Never
  /// changes the result.
  int num_threads = 0;

  /// Runs this implementation ("cpu/reference") or fails; empty picks the first that can, unless
  /// TESSERA_IMPL names one.
  std::string_view implementation;
};

/// What the dispatcher says of one implementation.
struct ImplementationReport {
  std::string name;     ///< "cpu/counting_sort"
  std::string refusal;  ///< why it does not run here; empty if it could
  std::string plan;     ///< how it would run here; empty if there is nothing to tell
  bool selected = false;
};

}  // namespace tessera
