// The stages of a product in shared memory: how words of rows and weights get there, and how a
// warp reads them as fragments.
//
// A stage holds a line of kLineBytes of each row of the tile; weights by columns have a line for
// each of kStageDepth elements instead. The words of 16 bytes of a line
// change places by an exclusive or with the number of the line, so that neither copies nor
// fragments of neighbouring lines meet in a bank.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/mma.cuh"

namespace tessera::cuda {

inline constexpr int kWordsPerStage = kLineBytes / static_cast<int>(kWordBytes);

/// Where word `word` of line `line` lies, for lines of kWords words.
template <int kWords>
__device__ __forceinline__ std::uint32_t place_of(int line, int word) {
  return static_cast<std::uint32_t>(line * kWords + (word ^ (line & 7))) * kWordBytes;
}

/// Copies up to a word of elements, `step` apart, and zeros after the first `count`.
template <typename Element>
__device__ __forceinline__ void copy_elements(std::uint32_t target, const Element* source,
                                              std::int64_t step, std::int64_t count) {
  constexpr int kPerPart = 4 / sizeof(Element);
  std::uint32_t word[4] = {};
#pragma unroll
  for (int i = 0; i < 4 * kPerPart; ++i) {
    const std::uint32_t element = i < count ? *source : 0;
    source += step;
    word[i / kPerPart] |= element << i % kPerPart * 8 * sizeof(Element);
  }
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(word[0]), "r"(word[1]),
               "r"(word[2]), "r"(word[3])
               : "memory");
}

/// The words that one thread copies of kLines lines along the sum, in every stage. An element is an
/// unsigned integer of the size of what is multiplied.
template <typename Element, int kLines, bool kHasWords>
class LinesAlongSum {
 public:
  /// `line_start(i)` gives the first element of line i of the tile, or null for a line of zeros.
  template <typename LineStart>
  __device__ __forceinline__ LinesAlongSum(std::int64_t step, const LineStart& line_start)
      : step_(step) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const Element* const start = line_start(first_line() + i * kLinesAtOnce);
      sources_[i] = start == nullptr ? nullptr : start + word() * kPerWord * step;
    }
  }

  /// Copies the elements from `begin` on, of `depth` in all, to `stage`.
  __device__ __forceinline__ void copy(std::uint32_t stage, std::int32_t begin,
                                       std::int32_t depth) const {
    const std::int32_t left = depth - begin - word() * kPerWord;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool given = sources_[i] != nullptr && left > 0;
      const std::uint32_t target =
          stage + place_of<kWordsPerStage>(first_line() + i * kLinesAtOnce, word());
      const Element* const source = sources_[i] + begin * step_;
      if constexpr (kHasWords) {
        copy_word_async(target, source, given);
      } else {
        copy_elements(target, source, step_, given ? left : 0);
      }
    }
  }

 private:
  static constexpr int kPerWord = static_cast<int>(kWordBytes / sizeof(Element));
  static constexpr int kLinesAtOnce = kProductThreads / kWordsPerStage;
  static constexpr int kCopies = kLines / kLinesAtOnce;
  static_assert(kCopies * kLinesAtOnce == kLines);

  __device__ static int word() { return static_cast<int>(threadIdx.x) % kWordsPerStage; }
  __device__ static int first_line() { return static_cast<int>(threadIdx.x) / kWordsPerStage; }

  std::int64_t step_;
  const Element* sources_[kCopies];
};

/// The words that one thread copies of kColumns columns, in every stage.
template <int kColumns>
class LinesAcrossSum {
 public:
  /// `word_start` gives the address of word i of the first line, or null for a word of zeros.
  template <typename WordStart>
  __device__ __forceinline__ LinesAcrossSum(std::int64_t line_stride, const WordStart& word_start)
      : line_stride_(line_stride), source_(word_start(word())) {}

  __device__ __forceinline__ void copy(std::uint32_t stage, std::int32_t begin,
                                       std::int32_t depth) const {
#pragma unroll
    for (int i = 0; i < kStageDepth / kLinesAtOnce; ++i) {
      const int line = first_line() + i * kLinesAtOnce;
      const bool given = source_ != nullptr && begin + line < depth;
      copy_word_async(stage + place_of<kWords>(line, word()),
                      source_ + (begin + line) * line_stride_, given);
    }
  }

 private:
  static constexpr int kWords = kColumns / kWordElements;
  static constexpr int kLinesAtOnce = kProductThreads / kWords;

  __device__ static int word() { return static_cast<int>(threadIdx.x) % kWords; }
  __device__ static int first_line() { return static_cast<int>(threadIdx.x) / kWords; }

  std::int64_t line_stride_;
  const std::uint16_t* source_;
};

/// Loads a[16x16] of lines along the sum: rows from `line`, two words from `word` on. Of elements
/// in float8_e4m3fn this is a[16x32], in the order that multiply_add() takes.
__device__ __forceinline__ void load_a(std::uint32_t stage, int line, int word,
                                       std::uint32_t (&a)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(stage + place_of<kWordsPerStage>(line + lane % 16, word + lane / 16), a);
}

/// Loads b[16x16], or b[32x16], as two fragments of 8 columns, of weights along the sum.
__device__ __forceinline__ void load_b(std::uint32_t stage, int column, int word,
                                       std::uint32_t (&b)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int line = column + lane / 16 * 8 + lane % 8;
  load_matrices(stage + place_of<kWordsPerStage>(line, word + lane / 8 % 2), b);
}

/// The same of weights across the sum, in tiles of kColumns columns.
template <int kColumns>
__device__ __forceinline__ void load_b_transposed(std::uint32_t stage, int column, int word,
                                                  std::uint32_t (&b)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int line = word * kWordElements + lane / 8 % 2 * 8 + lane % 8;
  load_transposed(
      stage + place_of<kColumns / kWordElements>(line, column / kWordElements + lane / 16), b);
}

}  // namespace tessera::cuda
