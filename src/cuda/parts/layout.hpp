// How a block of memory is divided into arrays. The host reads the block's size from a layout, and
// the kernel finds its arrays by the same layout (carve.cuh).
#pragma once

#include <cstddef>

namespace tessera::cuda {

/// An array of `T` in a block of memory; bytes from the start of the block.
template <typename T>
struct Section {
  std::size_t begin;
  std::size_t end;

  constexpr Section(std::size_t first_byte, std::size_t size)
      : begin(first_byte), end(first_byte + size * sizeof(T)) {}
};

}  // namespace tessera::cuda
