// The columns of quantize_fp8 for AVX2 and F16C.
#include "cpu/quantize_fp8_rows.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "cpu/avx2.hpp"
#include "cpu/quantize_fp8_vectors.hpp"

template <typename T>
std::int32_t tessera::cpu::largest_magnitude_avx2(const T* x, std::int64_t num_columns) {
  return largest_magnitude<Avx2Floats>(x, num_columns);
}

template <typename T>
void tessera::cpu::quantize_columns_avx2(const T* x, std::int64_t num_columns, float scale,
                                         std::uint8_t* values) {
  quantize_columns<Avx2Floats>(x, num_columns, scale, values);
}

#else

template <typename T>
std::int32_t tessera::cpu::largest_magnitude_avx2(const T*, std::int64_t) {
  return 0;
}

template <typename T>
void tessera::cpu::quantize_columns_avx2(const T*, std::int64_t, float, std::uint8_t*) {}

#endif

namespace tessera::cpu {

template std::int32_t largest_magnitude_avx2(const float*, std::int64_t);
template std::int32_t largest_magnitude_avx2(const Bfloat16*, std::int64_t);
template std::int32_t largest_magnitude_avx2(const Float16*, std::int64_t);
template void quantize_columns_avx2(const float*, std::int64_t, float, std::uint8_t*);
template void quantize_columns_avx2(const Bfloat16*, std::int64_t, float, std::uint8_t*);
template void quantize_columns_avx2(const Float16*, std::int64_t, float, std::uint8_t*);

}  // namespace tessera::cpu
