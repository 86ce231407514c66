// A table of a kernel's instances.
#pragma once

#include <span>

#include "cuda/align_block_size/kernels.hpp"

namespace tessera::cuda {

/// The instances of a kernel for one number of threads: one per IdWidth, plain and extended.
struct InstanceRow {
  int num_threads;
  void (*plain[kNumIdWidths])(AlignBlockSizePlainArgs);
  void (*extended[kNumIdWidths])(AlignBlockSizeExtendedArgs);
};

/// The instance in `rows`, or null if there is none with this number of threads.
inline const void* find_instance(std::span<const InstanceRow> rows, const Instance& instance) {
  const auto width = static_cast<std::size_t>(instance.width);
  for (const InstanceRow& row : rows) {
    if (row.num_threads != instance.num_threads) continue;
    return instance.is_extended ? reinterpret_cast<const void*>(row.extended[width])
                                : reinterpret_cast<const void*>(row.plain[width]);
  }
  return nullptr;
}

}  // namespace tessera::cuda
