// The products of fused_experts for one instruction set. Each sum of a product has a vector
// register of its own, to which the products of one register of the row with one of the token are
// added from the first to the last; then its lanes are added. So the sum's bits depend on nothing
// but the row and the token. Rows of weights are read as they lie in memory; transposed ones are
// packed into the cache first.
//
// Included by the source of each instruction set, which is compiled for that alone: nothing here
// may have a name or be an inline function that the linker could share with other sources.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/floating_point.hpp"
#include "cpu/fused_experts_fp8_rows.hpp"
#include "cpu/fused_experts_kernels.hpp"

namespace tessera::cpu {
namespace {

constexpr std::int64_t kCacheLineBytes = 64;

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t rounded_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Elements that the products take as float32.
template <typename IsaType, typename ElementType>
struct Widened {
  using Isa = IsaType;
  using Element = ElementType;
  using Packed = float;
  using Operand = typename Isa::Floats;
  static constexpr std::int64_t kStep = Isa::kLanes;

  template <typename Source>
  static Operand load(const Source* from) {
    return Isa::widen(from);
  }
  static void store(Packed* to, Operand values) { Isa::store(to, values); }
  static typename Isa::Floats multiply_add(Operand a, Operand b, typename Isa::Floats sum) {
    return Isa::multiply_add(a, b, sum);
  }
};

/// Weights in float8_e4m3fn, and vectors that already have their scales. Each Isa::kFp8Step weights
/// are widened at once, in another order and over Isa::kFp8Factor, to which NaNs are numbers. So
/// rows with NaNs get a NaN as their scale.
template <typename IsaType>
struct Fp8Weights : Widened<IsaType, Float8E4m3> {};

template <typename Format>
constexpr bool has_scales() {
  return is_fp8<typename Format::Element>();
}

/// Elements of a row that are loaded at once. Source is Element, as rows lie in memory, or Packed.
template <typename Format, typename Source>
constexpr std::int64_t row_step() {
  if constexpr (is_fp8<Source>()) return Format::Isa::kFp8Step;
  return Format::kStep;
}

/// A load of the first `size` elements, and zeros.
template <typename Format, typename Source>
auto load_part(const Source* from, std::int64_t size) {
  Source padded[Format::kStep] = {};
  copy(from, size, padded);
  return Format::load(padded);
}

/// Operands from `size` elements, the last one filled with zeros.
template <typename Format>
void pack_elements(const typename Format::Element* from, std::int64_t size,
                   typename Format::Packed* to) {
  std::int64_t i = 0;
  for (; i + Format::kStep <= size; i += Format::kStep) {
    Format::store(to + i, Format::load(from + i));
  }
  if (i < size) Format::store(to + i, load_part<Format>(from + i, size - i));
}

template <typename Format>
void pack(const void* elements, std::int64_t first, std::int64_t size, const PackedLayout& layout,
          void* packed) {
  const auto* from = static_cast<const typename Format::Element*>(elements);
  auto* const to = static_cast<typename Format::Packed*>(packed);
  while (size > 0) {
    const std::int64_t column = first % layout.width;
    const std::int64_t part = smaller(layout.width - column, size);
    pack_elements<Format>(from, part, to + first / layout.width * layout.block_stride + column);
    from += part;
    first += part;
    size -= part;
  }
}

/// Packs `length` columns of `num_rows` transposed rows: row r goes to `to` + r * width. Notes
/// which rows in float8_e4m3fn have NaNs.
template <typename Format>
void pack_transposed(const typename Format::Element* from, std::int64_t column_stride,
                     std::int64_t num_rows, std::int64_t length, std::int64_t width,
                     typename Format::Packed* to, bool* have_nan) {
  using Element = typename Format::Element;
  constexpr std::int64_t kStep = row_step<Format, Element>();
  for (std::int64_t k = 0; k < length; k += kStep) {
    const std::int64_t num_columns = smaller(kStep, length - k);
    Element tile[kMaxPanelRows][kStep] = {};
    for (std::int64_t column = 0; column < num_columns; ++column) {
      const Element* const source = from + (k + column) * column_stride;
      for (std::int64_t row = 0; row < num_rows; ++row) tile[row][column] = source[row];
    }
    for (std::int64_t row = 0; row < num_rows; ++row) {
      if constexpr (has_scales<Format>()) {
        have_nan[row] |=
            convert_row<typename Format::Isa>(tile[row], kStep, 1, to + row * width + k);
      } else {
        Format::store(to + row * width + k, Format::load(tile[row]));
      }
    }
  }
}

/// sums[t][row] += operand * token t, for each token.
template <typename Format, int kTokens>
[[gnu::always_inline]] inline void multiply_operand(
    typename Format::Operand operand, const typename Format::Packed* tokens, std::int64_t width,
    int row, typename Format::Isa::Floats (*sums)[Format::Isa::kRows]) {
  Format::Isa::keep(operand);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    sums[t][row] = Format::multiply_add(operand, Format::load(tokens + t * width), sums[t][row]);
  }
}

/// The same for a step of a row.
template <typename Format, int kTokens, typename Source>
[[gnu::always_inline]] inline void multiply_step(
    const Source* from, const typename Format::Packed* tokens, std::int64_t width, int row,
    typename Format::Isa::Floats (*sums)[Format::Isa::kRows], Nans<typename Format::Isa>* nans) {
  if constexpr (is_fp8<Source>()) {
    constexpr std::int64_t kLanes = Format::kStep;
    nans->look_at(from);
    const auto parts = Format::Isa::widen_fp8(from);
    multiply_operand<Format, kTokens>(parts.first_even, tokens, width, row, sums);
    multiply_operand<Format, kTokens>(parts.first_odd, tokens + kLanes, width, row, sums);
    multiply_operand<Format, kTokens>(parts.last_even, tokens + 2 * kLanes, width, row, sums);
    multiply_operand<Format, kTokens>(parts.last_odd, tokens + 3 * kLanes, width, row, sums);
  } else {
    multiply_operand<Format, kTokens>(Format::load(from), tokens, width, row, sums);
  }
}

/// Adds a NaN to the sums of each row that has one. Out of line and at the end, where no sum has to
/// stay in a register.
template <typename Isa>
[[gnu::noinline]] void add_nans(const Float8E4m3* const* rows, std::int64_t length, int num_tokens,
                                typename Isa::Floats* partial_sums) {
  for (int r = 0; r < Isa::kRows; ++r) {
    if (!has_nan(rows[r], length)) continue;
    for (int t = 0; t < num_tokens; ++t) partial_sums[t * Isa::kRows + r] += __builtin_nanf("");
  }
}

/// Adds the products of Isa::kRows rows with kTokens tokens to their sums. Source is the type of
/// the rows: Element as they lie in memory, or Packed. Rows with scales are multiplied by these.
/// Meanwhile prefetches as much of kAhead rows,
/// which lie `ahead_stride` elements apart.
template <typename Format, int kTokens, int kAhead, typename Source>
void multiply_block(const Source* const* rows, const typename Format::Packed* tokens,
                    std::int64_t width, std::int64_t length, bool is_first, const float* scales,
                    const typename Format::Element* ahead, std::int64_t ahead_stride,
                    typename Format::Isa::Floats* partial_sums) {
  using Isa = typename Format::Isa;
  typename Isa::Floats sums[kTokens][Isa::kRows];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
    for (int r = 0; r < Isa::kRows; ++r) {
      const bool is_new = is_first || has_scales<Format>();
      sums[t][r] = is_new ? typename Isa::Floats{} : partial_sums[t * Isa::kRows + r];
    }
  }
  constexpr std::int64_t kStep = row_step<Format, Source>();
  [[maybe_unused]] Nans<Isa> nans;
  std::int64_t k = 0;
  for (; k + kStep <= length; k += kStep) {
#pragma GCC unroll 8
    for (int r = 0; r < Isa::kRows; ++r) {
      // A cache line has many steps of such weights.
      if (r < kAhead && (!has_scales<Format>() || k % kCacheLineBytes == 0)) {
        __builtin_prefetch(ahead + r * ahead_stride + k, 0, 2);
      }
      multiply_step<Format, kTokens>(rows[r] + k, tokens + k, width, r, sums, &nans);
    }
  }
  if (k < length) {
#pragma GCC unroll 8
    for (int r = 0; r < Isa::kRows; ++r) {
      Source padded[kStep] = {};
      copy(rows[r] + k, length - k, padded);
      multiply_step<Format, kTokens>(padded, tokens + k, width, r, sums, &nans);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Isa::kRows; ++r) {
    [[maybe_unused]] typename Isa::Floats scale;
    if constexpr (has_scales<Format>()) scale = typename Isa::Floats{} + scales[r];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      auto& partial_sum = partial_sums[t * Isa::kRows + r];
      if constexpr (has_scales<Format>()) {
        const auto before = is_first ? typename Isa::Floats{} : partial_sum;
        partial_sum = Isa::multiply_add(scale, sums[t][r], before);
      } else {
        partial_sum = sums[t][r];
      }
    }
  }
  if constexpr (is_fp8<Source>()) {
    if (nans.found()) add_nans<Isa>(rows, length, kTokens, partial_sums);
  }
}

/// multiply_block() for up to three tokens.
template <typename Format, int kAhead, typename Source, typename... Arguments>
void multiply_tokens(std::int64_t num_tokens, Arguments... arguments) {
  static_assert(Format::Isa::kTokens <= 3);
  if (num_tokens == 1) return multiply_block<Format, 1, kAhead, Source>(arguments...);
  if (num_tokens == 2) return multiply_block<Format, 2, kAhead, Source>(arguments...);
  if constexpr (Format::Isa::kTokens == 3) {
    multiply_block<Format, 3, kAhead, Source>(arguments...);
  }
}

/// The same for any number of tokens. Meanwhile prefetches kRows rows from `ahead` on.
template <typename Format, typename Source>
void multiply_rows(const Source* const* rows, const typename Format::Packed* tokens,
                   std::int64_t num_tokens, std::int64_t width, std::int64_t length, bool is_first,
                   const float* scales, const typename Format::Element* ahead,
                   std::int64_t ahead_stride, typename Format::Isa::Floats* partial_sums) {
  using Isa = typename Format::Isa;
  if (num_tokens <= Isa::kTokens) {
    return multiply_tokens<Format, Isa::kRows, Source>(num_tokens, rows, tokens, width, length,
                                                       is_first, scales, ahead, ahead_stride,
                                                       partial_sums);
  }
  // Groups of about the same size: two and two tokens are faster than three and one.
  std::int64_t num_groups = (num_tokens + Isa::kTokens - 1) / Isa::kTokens;
  const bool are_many = num_groups >= Isa::kRows;
  for (std::int64_t t = 0, size = 0; t < num_tokens; t += size, --num_groups) {
    size = (num_tokens - t + num_groups - 1) / num_groups;
    const auto* const group = tokens + t * width;
    auto* const sums = partial_sums + t * Isa::kRows;
    if (are_many) {
      multiply_tokens<Format, 1, Source>(size, rows, group, width, length, is_first, scales, ahead,
                                         ahead_stride, sums);
      ahead += ahead_stride;
    } else {
      // Each group again, as processors drop prefetches when too many are under way.
      multiply_tokens<Format, Isa::kRows, Source>(size, rows, group, width, length, is_first,
                                                  scales, ahead, ahead_stride, sums);
    }
  }
}

/// Adds the lanes of each partial sum. kLanes sums at a time are the sums of kRows rows for one or
/// more tokens.
template <typename Isa>
void finish_sums(typename Isa::Floats* partial_sums, std::int64_t num_tokens, std::int64_t stride,
                 float* sums) {
  constexpr std::int64_t kTokensAtOnce = Isa::kLanes / Isa::kRows;
  for (std::int64_t i = num_tokens * Isa::kRows; i % Isa::kLanes != 0; ++i) {
    partial_sums[i] = typename Isa::Floats{};
  }
  for (std::int64_t t = 0; t < num_tokens; t += kTokensAtOnce) {
    alignas(64) float lanes[Isa::kLanes];
    Isa::store(lanes, Isa::add_lanes(partial_sums + t * Isa::kRows));
    for (std::int64_t i = 0; i < smaller(kTokensAtOnce, num_tokens - t); ++i) {
      std::memcpy(sums + (t + i) * stride, lanes + i * Isa::kRows, Isa::kRows * sizeof(float));
    }
  }
}

/// The scales of Isa::kRows rows from `first` on, for one block.
template <typename Format>
void read_scales(const WeightRows& weights, std::int64_t first, std::int64_t block, float* scales) {
  if (!weights.has_scale_per_block) block = 0;
  for (std::int64_t r = 0; r < Format::Isa::kRows; ++r) {
    scales[r] = weights.scales[smaller(first + r, weights.num_rows - 1)][block];
  }
}

template <typename Format>
void multiply(const PanelProduct& p) {
  using Isa = typename Format::Isa;
  using Element = typename Format::Element;
  using Packed = typename Format::Packed;
  using Floats = typename Isa::Floats;
  const WeightRows& weights = p.weights;
  const auto* const elements = static_cast<const Element*>(weights.data);
  const auto* const tokens = static_cast<const Packed*>(p.tokens);
  auto* const packed = static_cast<Packed*>(p.packed_weights);
  auto* const partial_sums = static_cast<Floats*>(p.partial_sums);
  const std::int64_t sums_per_group = rounded_up(p.num_tokens * Isa::kRows, Isa::kLanes);
  const std::int64_t width = p.layout.width;
  const std::int64_t stride = weights.row_stride;
  constexpr std::int64_t kStep = row_step<Format, Element>();

  const bool is_transposed = weights.column_stride != 1;
  // Weights are converted once for all tokens, if these are more than a few.
  const bool converts = has_scales<Format>() && !is_transposed && p.num_tokens > Isa::kTokens;
  const std::int64_t panel_rows = is_transposed ? kMaxPanelRows : Isa::kRows;
  for (std::int64_t first = 0; first < weights.num_rows; first += panel_rows) {
    const std::int64_t num_rows = smaller(panel_rows, weights.num_rows - first);
    const Element* const next = first + panel_rows < weights.num_rows
                                    ? elements + (first + panel_rows) * stride
                                    : static_cast<const Element*>(p.next_rows);
    std::int64_t index = 0;
    for (std::int64_t column = 0; column < p.layout.length; column += width, ++index) {
      const std::int64_t length = smaller(width, p.layout.length - column);
      const Packed* const block = tokens + index * p.layout.block_stride;
      const Element* const panel = elements + first * stride + column * weights.column_stride;
      const Element* const ahead = next + column;
      [[maybe_unused]] float scales[Isa::kRows];
      // The last row stands in for rows beyond it, whose sums nobody reads.
      if (is_transposed) {
        [[maybe_unused]] bool have_nan[kMaxPanelRows] = {};
        pack_transposed<Format>(panel, weights.column_stride, num_rows, length, width, packed,
                                have_nan);
        for (std::int64_t group = 0; group < num_rows; group += Isa::kRows) {
          const Packed* rows[Isa::kRows];
          for (std::int64_t r = 0; r < Isa::kRows; ++r) {
            rows[r] = packed + smaller(group + r, num_rows - 1) * width;
          }
          if constexpr (has_scales<Format>()) {
            read_scales<Format>(weights, first + group, index, scales);
            for (std::int64_t r = 0; r < Isa::kRows; ++r) {
              if (have_nan[group + r]) scales[r] = __builtin_nanf("");
            }
          }
          multiply_rows<Format>(rows, block, p.num_tokens, width, rounded_up(length, kStep),
                                column == 0, scales, panel, 0,
                                partial_sums + group / Isa::kRows * sums_per_group);
        }
      } else {
        const Element* rows[Isa::kRows];
        for (std::int64_t r = 0; r < Isa::kRows; ++r) {
          rows[r] = panel + smaller(r, num_rows - 1) * stride;
        }
        if constexpr (has_scales<Format>()) {
          read_scales<Format>(weights, first, index, scales);
          if (converts) {
            const Packed* converted[Isa::kRows];
            for (std::int64_t r = 0; r < Isa::kRows; ++r) {
              Packed* const row = packed + r * width;
              if (convert_row<Isa>(rows[r], length, 1, row)) scales[r] = __builtin_nanf("");
              converted[r] = row;
            }
            multiply_rows<Format>(converted, block, p.num_tokens, width, rounded_up(length, kStep),
                                  column == 0, scales, ahead, stride, partial_sums);
            continue;
          }
        }
        multiply_rows<Format>(rows, block, p.num_tokens, width, length, column == 0, scales, ahead,
                              stride, partial_sums);
      }
    }
    for (std::int64_t group = 0; group < num_rows; group += Isa::kRows) {
      finish_sums<Isa>(partial_sums + group / Isa::kRows * sums_per_group, p.num_tokens,
                       p.sums_stride, p.sums + first + group);
    }
  }
}

}  // namespace
}  // namespace tessera::cpu
