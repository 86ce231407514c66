// The columns of moe_sum and moe_unpermute in vectors. Included by the source of each instruction
// set, which is compiled for that alone: nothing here has a name that the linker could share with
// other sources.
#pragma once

#include <cstdint>

#include "cpu/moe_sum_columns.hpp"

namespace tessera::cpu {
namespace {

/// Sums kVectors vectors of columns, from `begin` on.
template <typename Isa, int kVectors, typename Token>
void sum_vectors(const Token& token, std::int64_t begin) {
  using T = typename Token::Element;
  constexpr std::int64_t kLine = 64 / sizeof(T);
  typename Isa::Floats sums[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums[v] = Isa::broadcast(kNothing);
  for (std::int64_t slot = 0; slot < token.top_k; ++slot) {
    // The same columns of the next token: the processor's own prefetches end with the page.
    if (const T* const next = next_row_of(token, slot); Token::kAllCount || next != nullptr) {
      for (std::int64_t line = 0; line < kVectors * Isa::kLanes; line += kLine) {
        __builtin_prefetch(next + begin + line, 0, 2);
      }
    }
    const T* const row = row_of(token, slot);
    if (!Token::kAllCount && row == nullptr) continue;
    const auto weight = Isa::broadcast(weight_of(token, slot));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = Isa::multiply_add(weight, Isa::widen(row + begin + Isa::kLanes * v), sums[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) Isa::round(token.output + begin + Isa::kLanes * v, sums[v]);
}

/// Sums columns [begin, end), unless they are fewer than a vector has; returns the first that is
/// left.
template <typename Isa, typename Token>
std::int64_t sum_columns(const Token& token, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kFour = 4 * Isa::kLanes;
  if (end - begin < Isa::kLanes) return begin;
  for (; end - begin >= kFour; begin += kFour) sum_vectors<Isa, 4>(token, begin);
  for (; end - begin >= Isa::kLanes; begin += Isa::kLanes) sum_vectors<Isa, 1>(token, begin);
  // The last vector may have columns of the one before, which get the same sums again.
  if (begin < end) sum_vectors<Isa, 1>(token, end - Isa::kLanes);
  return end;
}

}  // namespace
}  // namespace tessera::cpu
