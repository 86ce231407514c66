// Weighted sums of one element whose bits were worked out by hand, for the tests of the ops that
// sum rows.
#pragma once

#include <dlpack/dlpack.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace tessera::test {

inline constexpr DLDataType kFp16{kDLFloat, 16, 1};
inline constexpr DLDataType kBf16{kDLBfloat, 16, 1};
inline constexpr DLDataType kFp32{kDLFloat, 32, 1};

struct SumByHand {
  const char* what;
  DLDataType dtype;
  std::vector<std::uint32_t> x;  ///< bits, in the order of the slots
  std::vector<float> w;          ///< empty: no weights are given
  std::uint32_t expected;
};

inline const std::vector<SumByHand>& sums_by_hand() {
  static const std::vector<SumByHand> kAll = {
      {"a plain sum", kBf16, {0x3f80, 0x4000, 0x4040}, {}, 0x40c0},
      {"a weighted sum", kFp16, {0x3c00, 0x4000}, {0.5F, 0.25F}, 0x3c00},
      {"a copy", kFp32, {0x12345678}, {}, 0x12345678},

      {"half a unit in the last place goes to even, below", kBf16, {0x3f80, 0x3b80}, {}, 0x3f80},
      {"half a unit in the last place goes to even, above", kBf16, {0x3f81, 0x3b80}, {}, 0x3f82},
      {"more than half goes up", kBf16, {0x3f80, 0x3b81}, {}, 0x3f81},
      {"half, fp16, below", kFp16, {0x3c00, 0x1000}, {}, 0x3c00},
      {"half, fp16, above", kFp16, {0x3c01, 0x1000}, {}, 0x3c02},
      {"half, fp32, below", kFp32, {0x3f800000, 0x33800000}, {}, 0x3f800000},
      {"half, fp32, above", kFp32, {0x3f800001, 0x33800000}, {}, 0x3f800002},
      {"negative numbers round alike", kBf16, {0xbf81, 0xbb80}, {}, 0xbf82},
      {"a mantissa that rounds up into the exponent", kFp16, {0x3bff, 0x0c00}, {}, 0x3c00},
      // 1 + 2^-8 + 2^-30 is above half a unit, but float32 has lost the last term before.
      {"sums are float32 first", kBf16, {0x3f80, 0x3b80, 0x3080}, {}, 0x3f80},

      {"slots from the first to the last",
       kFp32,
       {0x4b800000, 0x3f800000, 0x3f800000},
       {},
       0x4b800000},
      {"the other way round", kFp32, {0x3f800000, 0x3f800000, 0x4b800000}, {}, 0x4b800001},
      // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24, whose last bit a rounded product loses.
      {"a product is not rounded before it is added",
       kFp32,
       {0xbf801000, 0x3f800800},
       {1.0F, 0x1.001p0F},
       0x33800000},
      {"the first product is rounded by itself",
       kFp32,
       {0x3f800800, 0xbf801000},
       {0x1.001p0F, 1.0F},
       0x00000000},

      {"-0 alone", kBf16, {0x8000}, {}, 0x8000},
      {"-0 and -0", kFp16, {0x8000, 0x8000}, {}, 0x8000},
      {"-0 and +0", kFp32, {0x80000000, 0x00000000}, {}, 0x00000000},
      {"-1 times 0", kFp32, {0x00000000}, {-1.0F}, 0x80000000},
      {"1 - 1", kBf16, {0x3f80, 0xbf80}, {}, 0x0000},

      {"65504 + 15.99", kFp16, {0x7bff, 0x4bff}, {}, 0x7bff},
      {"65504 + 16 is half a unit above", kFp16, {0x7bff, 0x4c00}, {}, 0x7c00},
      {"an overflow of bfloat16 alone", kBf16, {0xff7f, 0xfb00}, {}, 0xff80},
      {"an overflow of float32", kFp32, {0x7f7fffff, 0x7f7fffff, 0xff7fffff}, {}, 0x7f800000},
      {"an overflow of float32 on the way, fp16",
       kFp16,
       {0x7bff, 0xfbff},
       {0x1p127F, 1.0F},
       0x7c00},
      {"infinity", kBf16, {0xff80, 0x7f7f}, {}, 0xff80},

      {"a NaN of either sign and any mantissa, alone", kBf16, {0xff81}, {}, 0x7fff},
      {"a signalling NaN, fp16", kFp16, {0x7c01}, {}, 0x7fff},
      {"a negative NaN, fp16", kFp16, {0xfe00}, {1.0F}, 0x7fff},
      {"a signalling NaN, fp32", kFp32, {0xff800001}, {}, 0x7fffffff},
      {"a NaN in the last slot", kFp32, {0x3f800000, 0x7fc00000}, {}, 0x7fffffff},
      {"a NaN weight", kBf16, {0x3f80, 0x3f80}, {1.0F, -NAN}, 0x7fff},
      {"infinities of both signs", kFp16, {0x7c00, 0xfc00}, {}, 0x7fff},
      {"infinity times 0", kFp32, {0x7f800000}, {0.0F}, 0x7fffffff},

      {"a subnormal alone, bf16", kBf16, {0x0001}, {}, 0x0001},
      {"a subnormal alone, fp16", kFp16, {0x83ff}, {}, 0x83ff},
      {"a subnormal alone, fp32", kFp32, {0x80000001}, {}, 0x80000001},
      {"subnormals that add up to a normal number", kFp16, {0x0200, 0x0200}, {}, 0x0400},
      {"half the smallest subnormal goes to even", kFp16, {0x0001}, {0.5F}, 0x0000},
      {"three halves of it, too", kFp16, {0x0003}, {0.5F}, 0x0002},
      {"fp32: half the smallest, to even", kFp32, {0x00000001}, {0.5F}, 0x00000000},
      {"fp32: three halves of it", kFp32, {0x00000003}, {-0.5F}, 0x80000002},
      {"bf16: a subnormal of float32 rounds to one", kBf16, {0x0003}, {0.5F}, 0x0002},
  };
  return kAll;
}

}  // namespace tessera::test
