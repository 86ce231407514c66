// What the processor can do. An instruction set counts only if the system also saves its registers.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tessera::cpu {

#if defined(__x86_64__)

/// AVX2, FMA and F16C.
inline bool has_avx2() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // GCC 12 and clang 14 have no name for F16C, which uses the registers that AVX2 does.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

/// AVX2, FMA, F16C and AVX-512 F, BW, DQ and VL.
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/// has_avx512() and AVX512_BF16.
inline bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

#else

inline bool has_avx2() { return false; }
inline bool has_avx512() { return false; }
inline bool has_avx512_bf16() { return false; }

#endif

}  // namespace tessera::cpu
