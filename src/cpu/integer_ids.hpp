// Converts topk_ids to a typed pointer by its runtime dtype.
#pragma once

#include <cstdint>

#include "core/align_block_size_problem.hpp"

namespace tessera::cpu {

/// Calls `body` with topk_ids as a pointer to its element type.
template <typename Body>
void with_typed_ids(const core::AlignBlockSizeProblem& problem, Body&& body) {
  const bool is_signed = problem.id_dtype.code == kDLInt;
  const void* ids = problem.topk_ids;
  switch (problem.id_dtype.bits) {
    case 8:
      is_signed ? body(static_cast<const std::int8_t*>(ids))
                : body(static_cast<const std::uint8_t*>(ids));
      break;
    case 16:
      is_signed ? body(static_cast<const std::int16_t*>(ids))
                : body(static_cast<const std::uint16_t*>(ids));
      break;
    case 32:
      is_signed ? body(static_cast<const std::int32_t*>(ids))
                : body(static_cast<const std::uint32_t*>(ids));
      break;
    default:
      is_signed ? body(static_cast<const std::int64_t*>(ids))
                : body(static_cast<const std::uint64_t*>(ids));
  }
}

}  // namespace tessera::cpu
