#include <cstdint>
#include <type_traits>

#include "cuda/parts/division.cuh"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/fp8.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/quantize_fp8/kernel.hpp"

namespace tessera::cuda {
namespace {

using Args = QuantizeFp8KernelArgs;

constexpr int kThreads = kQuantizeFp8Threads;
constexpr int kWarps = kThreads / 32;

template <typename T, int kElements>
struct alignas(kElements * sizeof(T)) Word {
  T elements[kElements];
};

template <typename T>
using TwoOf = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

template <typename T, int kElements>
__device__ __forceinline__ std::uint32_t largest_in(const Word<T, kElements>& word) {
  if constexpr (sizeof(T) == 2 && kElements > 1) {
    // Two at a time. NaNs do not count, and infinities are rare.
    const auto* const twos = reinterpret_cast<const TwoOf<T>*>(word.elements);
    TwoOf<T> largest = __habs2(twos[0]);
#pragma unroll
    for (int i = 1; i < kElements / 2; ++i) largest = __hmax2(largest, __habs2(twos[i]));
    const float of_word = fmaxf(to_float(largest.x), to_float(largest.y));
    // Of NaNs alone it is a NaN.
    if (!isinf(of_word)) return finite_magnitude(of_word);
  }
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    largest = max(largest, finite_magnitude(to_float(word.elements[i])));
  }
  return largest;
}

/// The largest number of so many neighbouring warps, in all of their threads. All threads of the
/// CTA call it.
__device__ __forceinline__ std::uint32_t largest_of_warps(std::uint32_t largest, int num_warps) {
  __shared__ std::uint32_t of_warps[kWarps];
  largest = __reduce_max_sync(kAllLanes, largest);
  if (num_warps == 1) return largest;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) of_warps[warp] = largest;
  __syncthreads();
  for (int i = 0; i < num_warps; ++i) {
    largest = max(largest, of_warps[warp / num_warps * num_warps + i]);
  }
  __syncthreads();  // the next call may write
  return largest;
}

/// The rows of a call in words.
template <typename T, int kElements>
class Rows {
 public:
  using W = Word<T, kElements>;

  __device__ explicit Rows(const Args& args) : args_(args) {}

  __device__ __forceinline__ W load(std::int64_t row, std::uint32_t word) const {
    return reinterpret_cast<const W*>(static_cast<const char*>(args_.x) +
                                      row * args_.x_stride)[word];
  }

  __device__ __forceinline__ void quantize(const W& word, float scale, std::int64_t row,
                                           std::uint32_t index) const {
    if (args_.scale != nullptr) {
      write(word, row, index, [&](float value) { return __fdiv_rn(value, scale); });
    } else {
      const Fp8Divisor divisor = fp8_divisor(scale);
      write(word, row, index, [&](float value) { return quotient(value, divisor); });
    }
  }

 private:
  template <typename Quotient>
  __device__ __forceinline__ void write(const W& word, std::int64_t row, std::uint32_t index,
                                        const Quotient& of) const {
    Word<std::uint8_t, kElements> bytes;
    if constexpr (kElements == 1) {
      bytes.elements[0] = static_cast<std::uint8_t>(fp8x2_bits(of(to_float(word.elements[0])), 0));
    } else {
#pragma unroll
      for (int i = 0; i < kElements; i += 2) {
        const std::uint32_t two =
            fp8x2_bits(of(to_float(word.elements[i])), of(to_float(word.elements[i + 1])));
        bytes.elements[i] = static_cast<std::uint8_t>(two);
        bytes.elements[i + 1] = static_cast<std::uint8_t>(two >> 8);
      }
    }
    reinterpret_cast<Word<std::uint8_t, kElements>*>(args_.values +
                                                     row * args_.values_stride)[index] = bytes;
  }

  const Args& args_;
};

/// The thread's words of one row, every `step`th from `first` on, in registers.
template <typename T, int kElements, int kWords>
class Part {
 public:
  __device__ __forceinline__ Part(const Args& args, std::int64_t row, std::uint32_t first,
                                  std::uint32_t step)
      : args_(args), row_(row), first_(first), step_(step) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words_[i] = {};
      if (is_in_row(i)) words_[i] = Rows<T, kElements>(args_).load(row_, index(i));
    }
  }

  __device__ __forceinline__ std::uint32_t largest() const {
    std::uint32_t largest = 0;
#pragma unroll
    for (const auto& word : words_) largest = max(largest, largest_in(word));
    return largest;
  }

  __device__ __forceinline__ void quantize(float scale) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if (is_in_row(i)) Rows<T, kElements>(args_).quantize(words_[i], scale, row_, index(i));
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t index(int i) const { return first_ + i * step_; }
  __device__ __forceinline__ bool is_in_row(int i) const { return index(i) < args_.words_per_row; }

  const Args& args_;
  std::int64_t row_;
  std::uint32_t first_;
  std::uint32_t step_;
  Word<T, kElements> words_[kWords];
};

__device__ __forceinline__ bool is_left_out(const Args& args, std::int64_t row) {
  return args.rows.numbers != nullptr && static_cast<std::uint32_t>(args.rows.numbers[row]) >=
                                             static_cast<std::uint32_t>(args.rows.end);
}

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) row_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  pdl_wait();
  const std::uint32_t step = args.threads_per_row;
  const std::uint32_t rows_at_once = kThreads / step;
  const std::uint32_t words_at_once = step * kQuantizeFp8RowWords;
  const std::uint32_t first_word = threadIdx.x % step;
  using Words = Part<T, kElements, kQuantizeFp8RowWords>;
  for (std::int64_t begin = std::int64_t{blockIdx.x} * rows_at_once; begin < args.num_tokens;
       begin += std::int64_t{gridDim.x} * rows_at_once) {
    const std::int64_t row = begin + threadIdx.x / step;
    const bool counts = row < args.num_tokens && !is_left_out(args, row);
    const std::uint32_t end = counts ? args.words_per_row : 0;
    // The first words stay in registers; few rows have more.
    const Words words(args, row, counts ? first_word : args.words_per_row, step);
    float scale = 0;
    if (args.scale == nullptr) {
      std::uint32_t largest = words.largest();
      for (std::uint32_t next = first_word + words_at_once; next < end; next += words_at_once) {
        largest = max(largest, Words(args, row, next, step).largest());
      }
      largest = largest_of_warps(largest, static_cast<int>(step) / 32);
      scale = fp8_scale_for(largest, args.use_ue8m0);
    } else if (counts) {
      scale = args.scale[row];
    }
    if (!counts) continue;
    if (first_word == 0) args.scales[row] = scale;
    words.quantize(scale);
    for (std::uint32_t next = first_word + words_at_once; next < end; next += words_at_once) {
      Words(args, row, next, step).quantize(scale);
    }
  }
}

/// The place of a group among the scales. Division of 64 bits would take as long as the rest.
struct GroupAt {
  __device__ __forceinline__ GroupAt(const Args& args, std::int64_t group)
      : row(args.num_parts > 0x7fffffff
                ? group / args.grid_columns
                : divide(static_cast<std::int32_t>(group), args.groups_per_row)),
        column(static_cast<std::int32_t>(group - row * args.grid_columns)) {}

  std::int64_t row;
  std::int32_t column;
};

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) group_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  pdl_wait();
  constexpr int kTeam = quantize_fp8_threads_per_group(kElements);
  constexpr int kWords = kQuantizeFp8Side / kElements / kTeam;  // per thread
  const int thread = static_cast<int>(threadIdx.x) % kTeam;
  const Rows<T, kElements> rows(args);
  const auto word_of = [&](const GroupAt& at, int i) {
    return (static_cast<std::uint32_t>(at.column) * kWords + i) * kTeam + thread;
  };
  const std::int64_t stride = std::int64_t{gridDim.x} * (kThreads / kTeam);
  const std::int64_t first = std::int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
  // A team loads the words of several groups before it needs the first. All threads of a warp take
  // part in each round.
  const std::int64_t first_of_warp = first - threadIdx.x % 32 / kTeam;
  for (std::int64_t round = 0; first_of_warp + round < args.num_parts;
       round += kQuantizeFp8GroupsAtOnce * stride) {
    Word<T, kElements> words[kQuantizeFp8GroupsAtOnce][kWords] = {};
#pragma unroll
    for (int j = 0; j < kQuantizeFp8GroupsAtOnce; ++j) {
      const std::int64_t group = first + round + j * stride;
      if (group >= args.num_parts) break;
      const GroupAt at(args, group);
      if (is_left_out(args, at.row)) continue;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        if (word_of(at, i) < args.words_per_row) words[j][i] = rows.load(at.row, word_of(at, i));
      }
    }
#pragma unroll
    for (int j = 0; j < kQuantizeFp8GroupsAtOnce; ++j) {
      std::uint32_t largest = 0;
#pragma unroll
      for (const auto& word : words[j]) largest = max(largest, largest_in(word));
#pragma unroll
      for (int lanes = kTeam / 2; lanes > 0; lanes /= 2) {
        largest = max(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
      }
      const std::int64_t group = first + round + j * stride;
      if (group >= args.num_parts) continue;
      const GroupAt at(args, group);
      if (is_left_out(args, at.row)) continue;
      const float scale =
          args.scale != nullptr ? args.scale[group] : fp8_scale_for(largest, args.use_ue8m0);
      if (thread == 0) args.scales[group] = scale;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        if (word_of(at, i) < args.words_per_row) {
          rows.quantize(words[j][i], scale, at.row, word_of(at, i));
        }
      }
    }
  }
}

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) block_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  pdl_wait();
  constexpr int kWords = kQuantizeFp8Side / kElements;  // of a block's row
  constexpr int kRowStep = kThreads / kWords;
  const Rows<T, kElements> rows(args);
  for (std::int64_t block = blockIdx.x; block < args.num_parts; block += gridDim.x) {
    const auto word =
        static_cast<std::uint32_t>(block % args.grid_columns * kWords) + threadIdx.x % kWords;
    const std::int64_t first_row =
        block / args.grid_columns * kQuantizeFp8Side + threadIdx.x / kWords;
    // Of the rows that this thread has a word of.
    const std::int64_t end_row =
        word < args.words_per_row
            ? min(args.num_tokens, (block / args.grid_columns + 1) * kQuantizeFp8Side)
            : first_row;
    float scale;
    if (args.scale != nullptr) {
      scale = args.scale[block];
    } else {
      std::uint32_t largest = 0;
#pragma unroll 4
      for (std::int64_t row = first_row; row < end_row; row += kRowStep) {
        largest = max(largest, largest_in(rows.load(row, word)));
      }
      scale = fp8_scale_for(largest_of_warps(largest, kWarps), args.use_ue8m0);
    }
    if (threadIdx.x == 0) args.scales[block] = scale;
    for (std::int64_t row = first_row; row < end_row; row += kRowStep) {
      rows.quantize(rows.load(row, word), scale, row, word);
    }
  }
}

/// Calls `visit` with this thread's words of each part of this CTA.
template <typename T, int kElements, typename Visit>
__device__ __forceinline__ void for_each_part(const Args& args, const Visit& visit) {
  for (std::int64_t part = blockIdx.x; part < args.num_parts; part += gridDim.x) {
    const std::int64_t row = part / args.parts_per_row;
    if (is_left_out(args, row)) continue;
    const auto first =
        static_cast<std::uint32_t>((part - row * args.parts_per_row) * kQuantizeFp8WordsPerPart);
    visit(Part<T, kElements, kQuantizeFp8Words>(args, row, first + threadIdx.x, kThreads));
  }
}

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) largest_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  pdl_wait();
  std::uint32_t largest = 0;
  for_each_part<T, kElements>(args,
                              [&](const auto& words) { largest = max(largest, words.largest()); });
  largest = largest_of_warps(largest, kWarps);
  if (threadIdx.x == 0) args.largest[blockIdx.x] = largest;
}

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads) tensor_kernel(const __grid_constant__ Args args) {
  pdl_launch_dependents();
  pdl_wait();
  float scale;
  if (args.scale != nullptr) {
    scale = args.scale[0];
  } else {
    std::uint32_t largest = 0;
    for (int i = static_cast<int>(threadIdx.x); i < args.num_largest; i += kThreads) {
      largest = max(largest, args.largest[i]);
    }
    scale = fp8_scale_for(largest_of_warps(largest, kWarps), args.use_ue8m0);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) args.scales[0] = scale;
  for_each_part<T, kElements>(args, [&](const auto& words) { words.quantize(scale); });
}

template <typename T, int kElements>
const void* kernel_of(QuantizeFp8Kernel kernel) {
  switch (kernel) {
    case QuantizeFp8Kernel::kRow:
      return reinterpret_cast<const void*>(&row_kernel<T, kElements>);
    case QuantizeFp8Kernel::k1x128:
      return reinterpret_cast<const void*>(&group_kernel<T, kElements>);
    case QuantizeFp8Kernel::k128x128:
      return reinterpret_cast<const void*>(&block_kernel<T, kElements>);
    case QuantizeFp8Kernel::kLargest:
      return reinterpret_cast<const void*>(&largest_kernel<T, kElements>);
    default:
      return reinterpret_cast<const void*>(&tensor_kernel<T, kElements>);
  }
}

template <typename T>
const void* kernel_of(QuantizeFp8Kernel kernel, bool has_vectors) {
  constexpr int kElements = kQuantizeFp8VectorBytes / static_cast<int>(sizeof(T));
  return has_vectors ? kernel_of<T, kElements>(kernel) : kernel_of<T, 1>(kernel);
}

}  // namespace

const void* quantize_fp8_kernel(QuantizeFp8Kernel kernel, QuantizeFp8Type type, bool has_vectors) {
  switch (type) {
    case QuantizeFp8Type::kFloat16:
      return kernel_of<__half>(kernel, has_vectors);
    case QuantizeFp8Type::kBfloat16:
      return kernel_of<__nv_bfloat16>(kernel, has_vectors);
    default:
      return kernel_of<float>(kernel, has_vectors);
  }
}

}  // namespace tessera::cuda
