// A floating-point environment that no op may compute in.
#pragma once

#include <cfenv>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tessera::test {

#if defined(__x86_64__)
/// Makes the thread flush subnormals, read them as 0 and round upwards, as a caller may do.
class UnusualEnvironment {
 public:
  UnusualEnvironment() : before_(_mm_getcsr()) { _mm_setcsr(kUnusual); }
  ~UnusualEnvironment() { _mm_setcsr(before_); }
  bool is_unchanged() const { return _mm_getcsr() == kUnusual; }

 private:
  static constexpr unsigned kUnusual = 0x1f80 | 0x8040 | 0x4000;
  unsigned before_;
};
#else
class UnusualEnvironment {
 public:
  UnusualEnvironment() { std::fesetround(FE_UPWARD); }
  ~UnusualEnvironment() { std::fesetround(FE_TONEAREST); }
  bool is_unchanged() const { return std::fegetround() == FE_UPWARD; }
};
#endif

}  // namespace tessera::test
