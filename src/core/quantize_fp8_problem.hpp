// What an implementation of quantize_fp8 takes.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cstdint>

#include "tessera/quantize_fp8.hpp"

namespace tessera::core {

/// A validated call: every pointer is good for its shape, and nothing overlaps. Strides are in
/// elements, as stride_of() has them.
struct QuantizeFp8Problem {
  const void* x;
  const float* scale;  ///< null: the scales are computed
  std::uint8_t* values;
  float* scales;
  DLDataType dtype;  ///< of x
  Fp8Group group;
  bool use_ue8m0;
  std::int64_t num_tokens;
  std::int64_t hidden_size;
  std::int64_t x_stride;
  std::int64_t values_stride;

  // The groups lie in a grid. The last ones of a row or a column may have fewer elements.
  std::int64_t rows_per_group() const {
    return group == Fp8Group::kTensor ? num_tokens : group == Fp8Group::k128x128 ? 128 : 1;
  }
  std::int64_t columns_per_group() const {
    return group == Fp8Group::kTensor || group == Fp8Group::kRow ? hidden_size : 128;
  }
  std::int64_t grid_rows() const {
    return group == Fp8Group::kTensor    ? 1
           : group == Fp8Group::k128x128 ? (num_tokens + 127) / 128
                                         : num_tokens;
  }
  std::int64_t grid_columns() const {
    return group == Fp8Group::kTensor || group == Fp8Group::kRow ? 1 : (hidden_size + 127) / 128;
  }
  std::int64_t num_scales() const { return grid_rows() * grid_columns(); }
};

/// The group with one scale.
struct Fp8Rectangle {
  std::int64_t first_row;
  std::int64_t end_row;
  std::int64_t first_column;
  std::int64_t end_column;
};

inline Fp8Rectangle rectangle_of(const QuantizeFp8Problem& p, std::int64_t index) {
  const std::int64_t row = index / p.grid_columns() * p.rows_per_group();
  const std::int64_t column = index % p.grid_columns() * p.columns_per_group();
  return {row, std::min(row + p.rows_per_group(), p.num_tokens), column,
          std::min(column + p.columns_per_group(), p.hidden_size)};
}

}  // namespace tessera::core
