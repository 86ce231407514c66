// select_experts for AVX2, FMA and F16C.
#include "cpu/select_experts.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/avx2.hpp"
#include "cpu/select_experts_rows.hpp"

namespace tessera::cpu {
namespace {

struct Avx2 : Avx2Floats {
  using Ints = std::int32_t __attribute__((vector_size(32)));

  static constexpr Ints kPlaces{0, 1, 2, 3, 4, 5, 6, 7};

  static Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }

  static std::int32_t largest(Ints keys) {
    const auto all = std::bit_cast<__m256i>(keys);
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));  // the other half
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));  // the neighbour
    return _mm_cvtsi128_si32(most);
  }

  /// The first place of a key in a block that has it.
  static int find(std::int32_t key, const std::int32_t* block) {
    unsigned places = 0;
    for (int i = 0; i < kSums; i += kLanes) {
      const __m256i keys = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + i));
      const __m256i equal = _mm256_cmpeq_epi32(keys, _mm256_set1_epi32(key));
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(equal));
      places |= static_cast<unsigned>(mask) << i;
    }
    return std::countr_zero(places);
  }
};

}  // namespace

void select_rows_avx2(const core::SelectExpertsProblem& problem, std::int64_t begin,
                      std::int64_t end, std::byte* scratch) {
  select_rows<Avx2>(problem, begin, end, scratch);
}

}  // namespace tessera::cpu

#else

namespace tessera::cpu {

void select_rows_avx2(const core::SelectExpertsProblem&, std::int64_t, std::int64_t, std::byte*) {}

}  // namespace tessera::cpu

#endif
