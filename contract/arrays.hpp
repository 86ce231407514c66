// Access to arrays for checkers, and their description in messages.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "tessera/schema.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera::contract {

inline constexpr DLDataType kInt32{kDLInt, 32, 1};
inline constexpr DLDataType kInt64{kDLInt, 64, 1};
inline constexpr DLDataType kFloat32{kDLFloat, 32, 1};
inline constexpr DLDataType kFloat64{kDLFloat, 64, 1};

inline bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

/// Types of 8 bits that no op takes, by the codes that DLPack has for them from 0.8 and 1.1 on.
inline constexpr std::pair<std::uint8_t, const char*> kOtherTypes[] = {{6, "bool"},
                                                                       {11, "float8_e4m3fnuz"},
                                                                       {12, "float8_e5m2"},
                                                                       {13, "float8_e5m2fnuz"},
                                                                       {14, "float8_e8m0fnu"}};

inline std::string name_of(DLDataType dtype) {
  for (const dtypes::Dtype& known : dtypes::kAll) {
    if (same(dtype, known.dtype)) return known.name;
  }
  if (dtype.lanes == 1 && dtype.code == kDLComplex) return "complex" + std::to_string(dtype.bits);
  for (const auto& [code, name] : kOtherTypes) {
    if (dtype.code == code && dtype.bits == 8 && dtype.lanes == 1) return name;
  }
  return "dtype(code " + std::to_string(dtype.code) + ", " + std::to_string(dtype.bits) +
         " bits, " + std::to_string(dtype.lanes) + " lanes)";
}

/// The shortest text that converts back to the same value.
inline std::string text_of(double value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

/// Whether the elements may be read: contiguous, there, and aligned to their size. An empty array
/// needs no memory, but an address that it has must be aligned.
inline bool readable(const TensorView& view) {
  const auto address = reinterpret_cast<std::uintptr_t>(view.data);
  return view.contiguous && view.num_elements >= 0 && address % (view.dtype.bits / 8U) == 0 &&
         (view.num_elements == 0 || address != 0);
}

/// What keeps the elements from being read, but for their strides: "", " without memory".
inline std::string describe_fault(const TensorView& view) {
  if (view.data == nullptr) return view.num_elements == 0 ? "" : " without memory";
  const std::size_t width = std::max<std::size_t>(view.dtype.bits / 8U, 1);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(view.data) % width;
  if (past == 0) return "";
  return ", " + std::to_string(past) + " bytes past an address of their alignment";
}

inline std::string describe(const TensorView& view) {
  if (!view.given()) return "none";
  return std::to_string(view.num_elements) + (view.contiguous ? "" : " scattered") + " values of " +
         name_of(view.dtype) + describe_fault(view);
}

/// Whether it is float16, bfloat16 or float32.
inline bool is_float(DLDataType dtype) {
  return dtype.lanes == 1 && ((dtype.code == kDLFloat && (dtype.bits == 16 || dtype.bits == 32)) ||
                              (dtype.code == kDLBfloat && dtype.bits == 16));
}

/// Whether the elements may be read, and the array has `ndim` axes, of which the last is contiguous
/// and each other one steps over the axes after it.
inline bool has_rows(const TensorView& view, int ndim) {
  if (view.ndim != ndim) return false;
  const std::span lengths = std::span(view.shape).first(static_cast<std::size_t>(ndim));
  const bool is_empty = std::ranges::find(lengths, 0) != lengths.end();
  std::int64_t step = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (view.shape[i] < 0 || view.shape[i] > std::numeric_limits<std::int32_t>::max()) return false;
    if (view.shape[i] <= 1 || is_empty) continue;
    if (i == ndim - 1 ? view.strides[i] != 1 : view.strides[i] < step) return false;
    if (__builtin_mul_overflow(view.strides[i], view.shape[i], &step)) return false;
  }
  TensorView packed = view;
  packed.contiguous = true;
  if (is_empty) packed.num_elements = 0;
  return readable(packed);
}

/// The same where each axis steps over exactly what the axes after it hold.
inline bool has_contiguous_axes(const TensorView& view, int ndim) {
  if (!has_rows(view, ndim)) return false;
  std::int64_t step = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (view.shape[i] > 1 && view.strides[i] != step) return view.num_elements == 0;
    step *= view.shape[i];
  }
  return true;
}

/// "[3, 8, 64]"
inline std::string text_of(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text += ']';
}

/// "float32[3, 8, 64]", "float32[3, 8, 64] with strides [1, 3, 24]"
inline std::string describe_axes(const TensorView& view) {
  if (!view.given()) return "none";
  const auto ndim = static_cast<std::size_t>(std::clamp(view.ndim, 0, kMaxAxes));
  std::string text = name_of(view.dtype) + text_of(std::span(view.shape).first(ndim));
  if (!view.contiguous) text += " with strides " + text_of(std::span(view.strides).first(ndim));
  return text + describe_fault(view);
}

/// The bits of an element of a floating-point array.
inline std::uint32_t float_bits_at(const TensorView& view, std::int64_t index) {
  if (view.dtype.bits == 32) {
    return std::bit_cast<std::uint32_t>(static_cast<const float*>(view.data)[index]);
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, static_cast<const std::uint16_t*>(view.data) + index, sizeof(bits));
  return bits;
}

inline std::span<const std::int32_t> int32s(const TensorView& view) {
  return {static_cast<const std::int32_t*>(view.data), static_cast<std::size_t>(view.num_elements)};
}

/// No expert and no group, not even the group of the pairs with id -1.
inline constexpr std::int64_t kNoGroup = -2;

struct Id {
  std::int64_t bucket;  ///< the id if it lies in [-1, num_experts), else kNoGroup
  std::int64_t value;   ///< as `validation` holds it
};

using IdReader = Id (*)(const void* ids, std::int64_t i, std::int64_t num_experts);

template <typename T>
Id read_id(const void* ids, std::int64_t i, std::int64_t num_experts) {
  const T id = static_cast<const T*>(ids)[i];
  const auto value = static_cast<std::int64_t>(id);
  const bool in_range = std::cmp_greater_equal(id, -1) && std::cmp_less(id, num_experts);
  return {in_range ? value : kNoGroup, value};
}

/// A reader for ids of this type; null if it is not one of the eight integer types.
inline IdReader id_reader(DLDataType dtype) {
  if (dtype.lanes != 1) return nullptr;
  if (dtype.code == kDLInt) {
    switch (dtype.bits) {
      case 8:
        return read_id<std::int8_t>;
      case 16:
        return read_id<std::int16_t>;
      case 32:
        return read_id<std::int32_t>;
      case 64:
        return read_id<std::int64_t>;
    }
  }
  if (dtype.code == kDLUInt) {
    switch (dtype.bits) {
      case 8:
        return read_id<std::uint8_t>;
      case 16:
        return read_id<std::uint16_t>;
      case 32:
        return read_id<std::uint32_t>;
      case 64:
        return read_id<std::uint64_t>;
    }
  }
  return nullptr;
}

}  // namespace tessera::contract
