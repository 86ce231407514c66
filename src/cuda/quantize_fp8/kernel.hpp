// What the launcher of quantize_fp8 and its kernels share, and how a launch is planned. No CUDA
// headers, so that it can be tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/quantize_fp8_problem.hpp"
#include "cuda/parts/division.hpp"

namespace tessera::cuda {

/// Which rows of x count: those whose number is in [0, end).
struct QuantizeFp8Rows {
  const std::int32_t* numbers;  ///< [row]; null: all count
  std::int32_t end;
};

/// The arguments of all kernels. A word is kQuantizeFp8VectorBytes of x, or a single element.
/// Strides are in bytes.
struct QuantizeFp8KernelArgs {
  const void* x;
  const float* scale;  ///< null: the scales are computed
  std::uint8_t* values;
  float* scales;
  QuantizeFp8Rows rows;
  std::uint32_t* largest;  ///< [num_largest] of the largest magnitudes of parts of x, for kTensor
  std::int32_t num_largest;
  bool use_ue8m0;
  std::uint32_t words_per_row;
  std::uint32_t threads_per_row;  ///< kRow: a multiple of 32 that divides kQuantizeFp8Threads
  std::uint32_t parts_per_row;    ///< kLargest, kTensor: what one CTA takes of a row at a time
  std::int64_t num_parts;         ///< of all rows; kernels for groups and blocks: these
  Division groups_per_row;        ///< k1x128: valid for fewer than 2^31 groups
  std::int64_t num_tokens;
  std::int64_t grid_columns;  ///< of the scales
  std::int64_t x_stride;
  std::int64_t values_stride;
};

enum class QuantizeFp8Kernel : std::uint8_t {
  kRow,      ///< one or more warps per row
  k1x128,    ///< 16 or 32 threads per group
  k128x128,  ///< a CTA per block
  kLargest,  ///< the largest magnitude of the parts of each CTA
  kTensor,   ///< the scale from these, and the values
};
inline constexpr int kNumQuantizeFp8Kernels = 5;

enum class QuantizeFp8Type : std::uint8_t { kFloat16, kBfloat16, kFloat32 };
inline constexpr int kNumQuantizeFp8Types = 3;

/// A kernel for CTAs of kQuantizeFp8Threads threads. A CTA whose work is done takes the next.
const void* quantize_fp8_kernel(QuantizeFp8Kernel kernel, QuantizeFp8Type type, bool has_vectors);
inline constexpr int kQuantizeFp8Threads = 256;
inline constexpr int kQuantizeFp8VectorBytes = 16;
/// Words of a row that a thread loads at once by kRow. The kernel for groups loads several groups.
inline constexpr int kQuantizeFp8RowWords = 8;
inline constexpr int kQuantizeFp8GroupsAtOnce = 4;
/// Words of a row that a thread, and that a CTA loads at once by kLargest and kTensor.
inline constexpr int kQuantizeFp8Words = 4;
inline constexpr std::int64_t kQuantizeFp8WordsPerPart =
    std::int64_t{kQuantizeFp8Threads} * kQuantizeFp8Words;

/// Columns of a group or a block, and rows of a block.
inline constexpr int kQuantizeFp8Side = 128;

/// CTAs that share a tensor: enough for all multiprocessors, and few enough for each CTA to read
/// what all have found.
inline constexpr std::int64_t kQuantizeFp8TensorCtas = 1024;
inline constexpr std::int64_t kQuantizeFp8MaxCtas = std::int64_t{1} << 30;
/// Threads that keep all multiprocessors of a GPU busy: with more rows or groups than that, each
/// thread takes more.
inline constexpr std::int64_t kQuantizeFp8BusyThreads = std::int64_t{1} << 18;

struct QuantizeFp8Plan {
  QuantizeFp8Kernel kernel;
  QuantizeFp8Type type;
  bool has_vectors;
  std::uint32_t words_per_row;
  std::uint32_t threads_per_row;
  std::uint32_t parts_per_row;
  std::int64_t num_parts;
  std::int64_t num_ctas;
};

/// Threads that share a group of 128 columns.
constexpr int quantize_fp8_threads_per_group(int elements_per_word) {
  return elements_per_word == 1 ? 32 : kQuantizeFp8Side / elements_per_word;
}

/// Plans vectors if every row of x and of the values starts at a multiple of their size, and
/// consists of whole words.
inline QuantizeFp8Plan plan_quantize_fp8(const core::QuantizeFp8Problem& p) {
  const auto divided = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t element_bytes = p.dtype.bits / 8;
  const std::int64_t elements = kQuantizeFp8VectorBytes / element_bytes;
  QuantizeFp8Plan plan{};
  plan.type = p.dtype.code == kDLBfloat ? QuantizeFp8Type::kBfloat16
              : p.dtype.bits == 16      ? QuantizeFp8Type::kFloat16
                                        : QuantizeFp8Type::kFloat32;
  plan.has_vectors = reinterpret_cast<std::uintptr_t>(p.x) % kQuantizeFp8VectorBytes == 0 &&
                     reinterpret_cast<std::uintptr_t>(p.values) % elements == 0 &&
                     (p.x_stride | p.values_stride | p.hidden_size) % elements == 0;
  const std::int64_t elements_per_word = plan.has_vectors ? elements : 1;
  const std::int64_t words = p.hidden_size / elements_per_word;
  plan.words_per_row = static_cast<std::uint32_t>(words);
  plan.threads_per_row = kQuantizeFp8Threads;
  plan.parts_per_row = 1;
  plan.num_parts = p.num_tokens;
  plan.num_ctas = p.num_tokens;
  switch (p.group) {
    case Fp8Group::kTensor:
      plan.kernel = QuantizeFp8Kernel::kTensor;
      plan.parts_per_row = static_cast<std::uint32_t>(divided(words, kQuantizeFp8WordsPerPart));
      plan.num_parts = p.num_tokens * plan.parts_per_row;
      plan.num_ctas = std::min(plan.num_parts, kQuantizeFp8TensorCtas);
      break;
    case Fp8Group::kRow:
      plan.kernel = QuantizeFp8Kernel::kRow;
      while (plan.threads_per_row > 32 &&
             words <= std::int64_t{kQuantizeFp8RowWords} * plan.threads_per_row / 2 &&
             p.num_tokens * plan.threads_per_row / 2 >= kQuantizeFp8BusyThreads) {
        plan.threads_per_row /= 2;
      }
      plan.num_ctas =
          divided(p.num_tokens * plan.threads_per_row, std::int64_t{kQuantizeFp8Threads});
      break;
    case Fp8Group::k1x128: {
      plan.kernel = QuantizeFp8Kernel::k1x128;
      plan.num_parts = p.num_scales();
      const std::int64_t threads =
          plan.num_parts * quantize_fp8_threads_per_group(static_cast<int>(elements_per_word));
      const std::int64_t at_once =
          std::clamp<std::int64_t>(threads / kQuantizeFp8BusyThreads, 1, kQuantizeFp8GroupsAtOnce);
      plan.num_ctas = divided(threads, kQuantizeFp8Threads * at_once);
      break;
    }
    case Fp8Group::k128x128:
      plan.kernel = QuantizeFp8Kernel::k128x128;
      plan.num_parts = p.num_scales();
      plan.num_ctas = plan.num_parts;
      break;
  }
  plan.num_ctas = std::min(plan.num_ctas, kQuantizeFp8MaxCtas);
  return plan;
}

}  // namespace tessera::cuda
