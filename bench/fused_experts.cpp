// What bounds fused_experts on the CPU: reading the weights that a call uses, and as many
// multiply-adds as it takes, from registers.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstdint>
#include <string_view>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera::bench {
namespace {

namespace ffi = tvm::ffi;

/// Reads the weights of these experts, [E, ...] and int64 [experts], both contiguous, on
/// `num_threads` threads. Returns the exclusive or of their 64-bit words, so that none is left out.
std::int64_t read_experts(const ffi::TensorView& weights, const ffi::TensorView& experts,
                          std::int64_t num_threads) {
  constexpr std::int64_t kPartWords = 1 << 13;
  const auto* words = static_cast<const std::uint64_t*>(weights.data_ptr());
  const auto* rows = static_cast<const std::int64_t*>(experts.data_ptr());
  const std::int64_t num_words = weights.numel() / weights.shape()[0] * weights.dtype().bits / 64;
  const std::int64_t num_parts = (num_words + kPartWords - 1) / kPartWords;
  std::uint64_t found = 0;
#pragma omp parallel for num_threads(num_threads) reduction(^ : found)
  for (std::int64_t i = 0; i < experts.numel() * num_parts; ++i) {
    const std::int64_t begin = i % num_parts * kPartWords;
    const std::int64_t end = std::min(begin + kPartWords, num_words);
    const std::uint64_t* part = words + rows[i / num_parts] * num_words;
    for (std::int64_t word = begin; word < end; ++word) found ^= part[word];
  }
  return static_cast<std::int64_t>(found);
}

#if defined(__x86_64__)

// Enough independent sums to hide the latency of an instruction, and few enough for the registers.
// They begin with different numbers, so that the compiler keeps them apart.
constexpr std::int64_t kSums = 12;

[[gnu::target("avx512f,avx512bf16")]] float bfloat16_in_avx512(std::int64_t count) {
  const __m512bh factors = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1), _mm512_set1_ps(1));
  __m512 sums[kSums];
  for (std::int64_t i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t i = 0; i < count; i += kSums * 32) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, factors, factors);
  }
  __m512 total = _mm512_setzero_ps();
  for (const __m512& sum : sums) total = _mm512_add_ps(total, sum);
  return _mm512_cvtss_f32(total);
}

[[gnu::target("avx512f")]] float float32_in_avx512(std::int64_t count) {
  const __m512 factor = _mm512_set1_ps(1);
  __m512 sums[kSums];
  for (std::int64_t i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t i = 0; i < count; i += kSums * 16) {
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, factor);
  }
  __m512 total = _mm512_setzero_ps();
  for (const __m512& sum : sums) total = _mm512_add_ps(total, sum);
  return _mm512_cvtss_f32(total);
}

[[gnu::target("avx2,fma")]] float float32_in_avx2(std::int64_t count) {
  const __m256 factor = _mm256_set1_ps(1);
  __m256 sums[kSums];
  for (std::int64_t i = 0; i < kSums; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::int64_t i = 0; i < count; i += kSums * 8) {
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, factor);
  }
  __m256 total = _mm256_setzero_ps();
  for (const __m256& sum : sums) total = _mm256_add_ps(total, sum);
  return _mm256_cvtss_f32(total);
}

#endif

using MultiplyAdds = float (*)(std::int64_t count);

/// The loop for the widest vectors of this processor with factors of a data type. Where no loop
/// takes bfloat16 factors, it is the loop for float32. Null if this processor runs none of the
/// loops.
MultiplyAdds multiply_adds_of(std::string_view dtype) {
#if defined(__x86_64__)
  if (dtype == "bfloat16" && __builtin_cpu_supports("avx512bf16")) return bfloat16_in_avx512;
  if (__builtin_cpu_supports("avx512f")) return float32_in_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return float32_in_avx2;
#endif
  return nullptr;
}

bool has_multiply_adds() { return multiply_adds_of("float32") != nullptr; }

/// This many multiply-adds, from registers, on `num_threads` threads. Returns the sum of the
/// results.
double multiply_adds(const ffi::String& dtype, std::int64_t count, std::int64_t num_threads) {
  const MultiplyAdds function = multiply_adds_of({dtype.data(), dtype.size()});
  if (function == nullptr) TVM_FFI_THROW(RuntimeError) << "this processor has no multiply-add";
  double found = 0;
#pragma omp parallel for num_threads(num_threads) reduction(+ : found)
  for (std::int64_t i = 0; i < num_threads; ++i) found += function(count / num_threads);
  return found;
}

}  // namespace
}  // namespace tessera::bench

TVM_FFI_DLL_EXPORT_TYPED_FUNC(read_experts, tessera::bench::read_experts)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(has_multiply_adds, tessera::bench::has_multiply_adds)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(multiply_adds, tessera::bench::multiply_adds)
