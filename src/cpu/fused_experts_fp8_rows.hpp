// Rows in float8_e4m3fn for the products of one instruction set: how they are widened, and their
// NaNs. See fused_experts_products.hpp for how this is included.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {
namespace {

constexpr std::uint64_t kByteOnes = 0x0101010101010101;

template <typename Element>
void copy(const Element* from, std::int64_t size, Element* to) {
  std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(Element));
}

template <typename Element>
constexpr bool is_fp8() {
  return sizeof(Element) == sizeof(Float8E4m3);
}

// Out of line, as inlined into unrolled loops it is most of their code.
[[gnu::noinline]] bool has_nan(const Float8E4m3* elements, std::int64_t size) {
  // Eight at a time: adding 1 to the seven bits of a NaN sets the eighth, and to no others.
  std::uint64_t found = 0;
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, elements + i, sizeof(word));
    found |= (word & 0x7f * kByteOnes) + kByteOnes;
  }
  for (; i < size; ++i) found |= (elements[i].bits & 0x7fU) + 1U;
  return (found & 0x80 * kByteOnes) != 0;
}

/// Whether steps of rows have a NaN.
template <typename Isa>
class Nans {
 public:
  void look_at(const Float8E4m3* step) {
    Bytes bytes;
    std::memcpy(&bytes, step, sizeof(bytes));
    const Bytes doubled = bytes + bytes;  // without the sign: 0xfe of a NaN alone
    largest_ = doubled > largest_ ? doubled : largest_;
  }
  bool found() const {
    const Bytes above = (largest_ >> 1) + 1;
    std::uint64_t words[sizeof(Bytes) / 8];
    std::memcpy(words, &above, sizeof(above));
    std::uint64_t found = 0;
    for (const std::uint64_t word : words) found |= word;
    return (found & 0x80 * kByteOnes) != 0;
  }

 private:
  using Bytes = typename Isa::Fp8Bytes;
  Bytes largest_{};
};

/// Widens a row over Isa::kFp8Factor, times `factor`, with zeros up to a whole step behind it.
/// Returns whether it has a NaN.
template <typename Isa>
[[gnu::noinline]] bool convert_row(const Float8E4m3* from, std::int64_t size, float factor,
                                   float* to) {
  for (std::int64_t i = 0; i < size; i += Isa::kFp8Step) {
    Float8E4m3 padded[Isa::kFp8Step] = {};
    const bool is_whole = i + Isa::kFp8Step <= size;
    if (!is_whole) copy(from + i, size - i, padded);
    const auto parts = Isa::widen_fp8(is_whole ? from + i : padded);
    Isa::store(to + i, parts.first_even * factor);
    Isa::store(to + i + Isa::kLanes, parts.first_odd * factor);
    Isa::store(to + i + 2 * Isa::kLanes, parts.last_even * factor);
    Isa::store(to + i + 3 * Isa::kLanes, parts.last_odd * factor);
  }
  return has_nan(from, size);
}

/// Packs elements times their scale, and times Isa::kFp8Factor, which weights lack.
template <typename Isa>
void pack_fp8(const Float8E4m3* from, std::int64_t size, float scale, float* to) {
  // Every product of a vector that has a NaN is one.
  if (has_nan(from, size)) scale = __builtin_nanf("");
  convert_row<Isa>(from, size, Isa::kFp8Factor * Isa::kFp8Factor * scale, to);
}

}  // namespace
}  // namespace tessera::cpu
