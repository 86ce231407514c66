#include "random_floats.hpp"

#include <cstring>
#include <iterator>

namespace tessera::contract {

DLDataType dtype_of(FloatFormat format) {
  const bool is_bfloat = format.bits == 16 && format.precision == kBfloat16Format.precision;
  return {static_cast<std::uint8_t>(is_bfloat ? kDLBfloat : kDLFloat),
          static_cast<std::uint8_t>(format.bits), 1};
}

std::uint32_t random_bits(RandomNumbers& random, int count) {
  return static_cast<std::uint32_t>(random.below(std::int64_t{1} << count));
}

std::uint32_t float_with_exponent(FloatFormat format, std::int64_t low, std::int64_t high,
                                  RandomNumbers& random) {
  const auto exponent = static_cast<std::uint32_t>(low + random.below(high - low + 1));
  return (random.one_in(2) ? format.sign_bit() : 0) | exponent << (format.precision - 1) |
         random_bits(random, format.precision - 1);
}

std::uint32_t random_float(FloatFormat format, FloatValues values, RandomNumbers& random) {
  const std::int64_t largest =
      std::int64_t{2} * format.max_exponent;  // stored exponent of finite values
  switch (values) {
    case FloatValues::kAnyBits:
      return random_bits(random, format.bits);
    case FloatValues::kSubnormal:
      return float_with_exponent(format, 0, 1, random);
    case FloatValues::kHuge:
      return float_with_exponent(format, largest - 1, largest, random);
    case FloatValues::kSpecial:
      if (random.one_in(2)) {
        const std::uint32_t infinity = format.infinity();
        // The last three are NaNs: a signalling one, a quiet one, and any.
        const std::uint32_t magnitudes[] = {0,
                                            1,
                                            format.mantissa_mask(),
                                            infinity - 1,
                                            infinity,
                                            infinity + 1,
                                            infinity | (1U << (format.precision - 2)),
                                            infinity | random_bits(random, format.precision - 1)};
        const std::uint32_t magnitude = magnitudes[random.below(std::ssize(magnitudes))];
        return magnitude | (random.one_in(2) ? format.sign_bit() : 0);
      }
      [[fallthrough]];
    default:
      return float_with_exponent(format, format.max_exponent - 4, format.max_exponent + 3, random);
  }
}

std::vector<std::byte> bytes_of(const std::vector<std::uint32_t>& bits, FloatFormat format) {
  const auto width = static_cast<std::size_t>(format.bits / 8);
  std::vector<std::byte> bytes(bits.size() * width);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const auto half = static_cast<std::uint16_t>(bits[i]);
    std::memcpy(bytes.data() + i * width, width == 2 ? static_cast<const void*>(&half) : &bits[i],
                width);
  }
  return bytes;
}

}  // namespace tessera::contract
