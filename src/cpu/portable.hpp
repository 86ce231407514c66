// Vectors of floats that compilers have for every processor, for the sources without an instruction
// set of their own.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/floating_point.hpp"

namespace tessera::cpu {
namespace {

/// Four floats, and their conversion from the data types of arrays.
struct PortableFloats {
  using Floats = float __attribute__((vector_size(16)));
  static constexpr std::int64_t kLanes = 4;

  static Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof(values));
    return values;
  }
  static void store(float* to, Floats values) { std::memcpy(to, &values, sizeof(values)); }

  template <typename Element>
  static Floats widen(const Element* from) {
    return Floats{to_float(from[0]), to_float(from[1]), to_float(from[2]), to_float(from[3])};
  }
  static Fp8Parts<PortableFloats> widen_fp8(const Float8E4m3* from) {
    const auto every_other = [](const Float8E4m3* first) {
      return Floats{to_float(first[0]), to_float(first[2]), to_float(first[4]), to_float(first[6])};
    };
    return {every_other(from), every_other(from + 1), every_other(from + 8), every_other(from + 9)};
  }
  using Fp8Bytes = std::uint8_t __attribute__((vector_size(16)));
  static constexpr std::int64_t kFp8Step = sizeof(Fp8Bytes);
  static constexpr float kFp8Factor = 1;
};

}  // namespace
}  // namespace tessera::cpu
