// From an instance to its kernel.
#pragma once

#include "cuda/select_and_align/kernel.hpp"

namespace tessera::cuda {

/// The kernel of an instance, where Kernels::of<kPerLane, kScoring, kIsPlain>() returns one.
template <typename Kernels, int kPerLane, Scoring kScoring>
const void* kernel_of_scoring(bool is_plain) {
  return is_plain
             ? reinterpret_cast<const void*>(Kernels::template of<kPerLane, kScoring, true>())
             : reinterpret_cast<const void*>(Kernels::template of<kPerLane, kScoring, false>());
}

template <typename Kernels, int kPerLane>
const void* kernel_of_size(const SelectAndAlignInstance& instance) {
  switch (instance.scoring) {
    case Scoring::kSoftmax:
      return kernel_of_scoring<Kernels, kPerLane, Scoring::kSoftmax>(instance.is_plain);
    case Scoring::kSigmoid:
      return kernel_of_scoring<Kernels, kPerLane, Scoring::kSigmoid>(instance.is_plain);
    default:
      return kernel_of_scoring<Kernels, kPerLane, Scoring::kSqrtSoftplus>(instance.is_plain);
  }
}

template <typename Kernels>
const void* find_kernel(const SelectAndAlignInstance& instance) {
  switch (instance.size) {
    case 0:
      return kernel_of_size<Kernels, 4>(instance);
    case 1:
      return kernel_of_size<Kernels, 8>(instance);
    default:
      return kernel_of_size<Kernels, 16>(instance);
  }
}

}  // namespace tessera::cuda
