// Device, stream, workspace and threads of a call.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "tessera/tensor_view.hpp"

namespace tessera {

/// With the defaults a call runs on the host, on as many threads as are worthwhile, with the
/// fastest implementation.
struct Context {
  DLDevice device = kHostDevice;

  /// The device's stream (a cudaStream_t); ignored on the host. A stream of another device is
  /// refused.
  void* stream = nullptr;

  /// Scratch memory on `device`, at least as large as the op's size query returns, of any alignment
  /// and content. Calls that may run at the same time need separate workspaces.
  std::span<std::byte> workspace;

  /// Maximum number of host threads of a call, capped by TESSERA_NUM_THREADS. 0 stands for
  /// TESSERA_NUM_THREADS or, if that is unset, for the cores that this process can use when the
  /// call runs: the cores in the affinity of its main thread or of the caller, but no more than the
  /// CPU quota of its control groups. The affinity may change between the size query and the call.
  /// The number never changes the result.
  int num_threads = 0;

  /// The call runs this implementation ("cpu/reference") or fails. If empty, it runs the first one
  /// that can, unless TESSERA_IMPL names one.
  std::string_view implementation;
};

/// The answer of dispatch about one implementation.
struct ImplementationReport {
  std::string name;     ///< "cpu/counting_sort"
  std::string refusal;  ///< why it does not run here; empty if it could
  std::string plan;     ///< its launch plan here; empty if it has none
  bool selected = false;
};

}  // namespace tessera
