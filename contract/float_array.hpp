// Arrays of floating-point numbers for cases, filled fast enough for the weights of a model.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "float8_values.hpp"
#include "float_bits.hpp"

namespace tessera::contract {

/// Of float8_e4m3fn, for the size of its elements and its sign.
inline constexpr FloatFormat kFloat8Format{8, 4, 7};

/// An array of floating-point numbers whose rows may lie apart, NaN until filled in.
class FloatArray {
 public:
  FloatArray(FloatFormat format, std::initializer_list<std::int64_t> shape, std::int64_t gap)
      : format_(format) {
    std::ranges::copy(shape, shape_.begin());
    const auto ndim = static_cast<int>(shape.size());
    std::int64_t step = 1;
    std::int64_t last = 0;
    bool is_empty = false;
    for (int i = ndim - 1; i >= 0; --i) {
      const auto axis = static_cast<std::size_t>(i);
      strides_[axis] = step;
      last += (shape_[axis] - 1) * step;
      is_empty |= shape_[axis] == 0;
      step = step * shape_[axis] + gap;
    }
    // All bits set is a NaN in every format.
    if (!is_empty) memory_.assign(static_cast<std::size_t>((last + 1) * width()), std::byte{0xff});
  }

  std::int64_t stride(std::size_t axis) const { return strides_[axis]; }
  FloatFormat format() const { return format_; }

  std::uint32_t get(std::int64_t index) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, memory_.data() + index * width(), static_cast<std::size_t>(width()));
    return bits;
  }
  void set(std::int64_t index, std::uint32_t bits) {
    std::memcpy(memory_.data() + index * width(), &bits, static_cast<std::size_t>(width()));
  }

  /// For a number that the format holds.
  void set_value(std::int64_t index, double value) {
    set(index, format_.bits == 8 ? static_cast<std::uint32_t>(fp8_bits_of(value))
                                 : bits_of(format_, value));
  }

  std::vector<std::byte>& memory() { return memory_; }

 private:
  std::int64_t width() const { return format_.bits / 8; }

  FloatFormat format_;
  std::array<std::int64_t, 3> shape_{};
  std::array<std::int64_t, 3> strides_{};
  std::vector<std::byte> memory_;
};

/// Fills rows with numbers of one kind.
class Filler {
 public:
  /// Numbers of magnitude 2^`exponent` or less; small multiples of half of that if `is_exact`.
  Filler(std::uint64_t seed, int exponent, bool is_exact)
      : state_(seed), exponent_(exponent), is_exact_(is_exact) {}

  void fill(FloatArray* array, std::int64_t begin, std::int64_t length) {
    std::byte* const at = array->memory().data() + begin * (array->format().bits / 8);
    const float scale = std::ldexp(1.0F, is_exact_ ? exponent_ - 1 : exponent_ - 31);
    for (std::int64_t i = 0; i < length; ++i) {
      const float value = static_cast<float>(next()) * scale;
      const auto bits = std::bit_cast<std::uint32_t>(value);
      if (array->format().bits == 32) {
        std::memcpy(at + 4 * i, &bits, 4);
      } else if (array->format().bits == 8) {
        at[i] = static_cast<std::byte>(fp8_bits_of(double{value}));
      } else {
        const auto half = static_cast<std::uint16_t>(
            array->format().precision == kBfloat16Format.precision ? bits >> 16 : float16(bits));
        std::memcpy(at + 2 * i, &half, 2);
      }
    }
  }

 private:
  std::int32_t next() {
    // The upper bits of a linear congruential generator with Knuth's constants.
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    if (is_exact_) return static_cast<std::int32_t>((state_ >> 32) * 5 >> 32) - 2;
    return static_cast<std::int32_t>(state_ >> 32);
  }

  /// A float32 cut down to float16; 0 instead of a subnormal.
  static std::uint32_t float16(std::uint32_t bits) {
    const std::uint32_t magnitude = bits & 0x7fffffff;
    constexpr std::uint32_t kBias = (127 - 15) << 23;
    constexpr std::uint32_t kSmallestNormal = kBias + (1 << 23);
    return (bits >> 16 & 0x8000) | (magnitude < kSmallestNormal ? 0 : (magnitude - kBias) >> 13);
  }

  std::uint64_t state_;
  int exponent_;
  bool is_exact_;
};

}  // namespace tessera::contract
