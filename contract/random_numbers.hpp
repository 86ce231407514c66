// Random numbers that are the same on every platform, unlike the standard distributions.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace tessera::contract {

/// splitmix64 of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
class RandomNumbers {
 public:
  explicit RandomNumbers(std::uint64_t seed) : state_(seed) {}

  /// Uniform in [0, bound) for 1 <= bound <= 2^32.
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(((next() >> 32) * static_cast<std::uint64_t>(bound)) >> 32);
  }

  /// In [0, bound), every order of magnitude about equally likely.
  std::int64_t magnitude_below(std::int64_t bound) {
    const std::int64_t bits = std::bit_width(static_cast<std::uint64_t>(bound));
    const std::int64_t reach = std::int64_t{1} << below(bits + 1);
    return below(reach < bound ? reach : bound);
  }

  bool one_in(std::int64_t n) { return below(n) == 0; }

 private:
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

/// Any value; one in three is the smallest or the largest.
inline std::int32_t any_int32(RandomNumbers& random) {
  using Limits = std::numeric_limits<std::int32_t>;
  if (random.one_in(3)) return random.one_in(2) ? Limits::min() : Limits::max();
  return static_cast<std::int32_t>(random.below(std::int64_t{1} << 32) + Limits::min());
}

}  // namespace tessera::contract
