// quantize_fp8 on the CPU. A group is read twice, the second time from the cache, except for one
// group of all elements, which threads share.
#include "cpu/quantize_fp8.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dispatch.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/portable.hpp"
#include "cpu/processor.hpp"
#include "cpu/quantize_fp8_rows.hpp"
#include "cpu/quantize_fp8_vectors.hpp"
#include "cpu/thread_pool.hpp"

namespace tessera::cpu {
namespace {

using core::Fp8Rectangle;
using core::QuantizeFp8Problem;

// Fewest elements per thread that make waking it worthwhile: a sleeping thread starts some 50 us
// late on a virtual machine.
constexpr std::int64_t kElementsPerThread = std::int64_t{1} << 17;

// More slices than threads, so that a thread that starts late still finds work, and threads end
// together.
constexpr int kSlicesPerThread = 16;

/// Rules 1 and 2 of the contract.
float scale_for(float amax, bool use_ue8m0) {
  const float scale = std::max(amax, 1e-10F) / 448.0F;
  if (!use_ue8m0) return scale;
  // A normal number: a mantissa rounds up into the exponent.
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(scale) + 0x7fffff) & 0x7f800000U);
}

/// Follows the contract literally.
struct Plainly {
  template <typename T>
  static std::int32_t largest(const T* x, std::int64_t num_columns) {
    float amax = 0;
    for (std::int64_t i = 0; i < num_columns; ++i) {
      const float magnitude = std::abs(to_float(x[i]));
      if (std::isfinite(magnitude)) amax = std::max(amax, magnitude);
    }
    return std::bit_cast<std::int32_t>(amax);
  }

  template <typename T>
  static void quantize(const T* x, std::int64_t num_columns, float scale, std::uint8_t* values) {
    for (std::int64_t i = 0; i < num_columns; ++i) values[i] = rounded(to_float(x[i]) / scale);
  }

 private:
  static std::uint8_t rounded(float value) {
    if (std::isnan(value)) return 0x7f;
    const float magnitude = std::min(std::abs(value), 448.0F);
    // Values from 2^e on are multiples of 2^(e - 3); below 2^-6, of 2^-9.
    const int exponent = std::max(magnitude == 0 ? -6 : std::ilogb(magnitude), -6);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    // 8 units more are the hidden bit, which adds 1 to the exponent, and 16 the next exponent.
    const int bits = (exponent + 6) * 8 + units;
    return static_cast<std::uint8_t>((std::signbit(value) ? 0x80 : 0) | bits);
  }
};

struct Portably {
  template <typename T>
  static std::int32_t largest(const T* x, std::int64_t num_columns) {
    return largest_magnitude<PortableFloats>(x, num_columns);
  }

  template <typename T>
  static void quantize(const T* x, std::int64_t num_columns, float scale, std::uint8_t* values) {
    quantize_columns<PortableFloats>(x, num_columns, scale, values);
  }
};

struct WithAvx2 {
  template <typename T>
  static std::int32_t largest(const T* x, std::int64_t num_columns) {
    return largest_magnitude_avx2(x, num_columns);
  }

  template <typename T>
  static void quantize(const T* x, std::int64_t num_columns, float scale, std::uint8_t* values) {
    quantize_columns_avx2(x, num_columns, scale, values);
  }
};

/// The two passes, for elements of type T.
template <typename Columns, typename T>
class Call {
 public:
  explicit Call(const QuantizeFp8Problem& problem) : p_(problem) {}

  /// The largest magnitude of elements [begin, end), counted without the gaps between rows.
  std::int32_t largest(std::int64_t begin, std::int64_t end) const {
    std::int32_t of_all = 0;
    for_each_row(begin, end, [&](std::int64_t row, std::int64_t column, std::int64_t count) {
      of_all = std::max(of_all, Columns::largest(x_at(row, column), count));
    });
    return of_all;
  }

  /// Quantises the same elements with one scale.
  void quantize(std::int64_t begin, std::int64_t end, float scale) const {
    for_each_row(begin, end, [&](std::int64_t row, std::int64_t column, std::int64_t count) {
      Columns::quantize(x_at(row, column), count, scale, values_at(row, column));
    });
  }

  /// Quantises groups [begin, end), each with its own scale.
  void quantize_groups(std::int64_t begin, std::int64_t end) const {
    for (std::int64_t group = begin; group < end; ++group) {
      const Fp8Rectangle r = rectangle_of(p_, group);
      const std::int64_t count = r.end_column - r.first_column;
      float scale = 0;
      if (p_.scale != nullptr) {
        scale = p_.scale[group];
      } else {
        std::int32_t bits = 0;
        for (std::int64_t row = r.first_row; row < r.end_row; ++row) {
          bits = std::max(bits, Columns::largest(x_at(row, r.first_column), count));
        }
        scale = scale_for(std::bit_cast<float>(bits), p_.use_ue8m0);
        p_.scales[group] = scale;
      }
      for (std::int64_t row = r.first_row; row < r.end_row; ++row) {
        Columns::quantize(x_at(row, r.first_column), count, scale, values_at(row, r.first_column));
      }
    }
  }

 private:
  template <typename Visit>
  void for_each_row(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    while (begin < end) {
      const std::int64_t column = begin % p_.hidden_size;
      const std::int64_t count = std::min(p_.hidden_size - column, end - begin);
      visit(begin / p_.hidden_size, column, count);
      begin += count;
    }
  }

  const T* x_at(std::int64_t row, std::int64_t column) const {
    return static_cast<const T*>(p_.x) + row * p_.x_stride + column;
  }

  std::uint8_t* values_at(std::int64_t row, std::int64_t column) const {
    return p_.values + row * p_.values_stride + column;
  }

  const QuantizeFp8Problem& p_;
};

/// Calls run(slice, begin, end) for parts of `num_items`, on several threads if there are elements
/// enough, in the default floating-point environment.
template <typename Run>
void in_slices(const QuantizeFp8Problem& p, std::int64_t num_items, const Context& context,
               const Run& run) {
  const std::int64_t num_shares =
      std::min(num_items, p.num_tokens * p.hidden_size / kElementsPerThread);
  if (num_shares < 2) {
    const DefaultFloatingPoint environment;
    run(0, 0, num_items);
    return;
  }
  const int max_slices =
      static_cast<int>(std::min<std::int64_t>(num_shares, ThreadPool::kMaxSlices));
  ThreadPool::Lease lease(std::min(max_slices, core::max_threads(context)));
  const int num_slices = std::min(max_slices, lease.num_threads() * kSlicesPerThread);
  const std::int64_t length = num_items / num_slices;
  lease.run(num_slices, [&](int slice) {
    const DefaultFloatingPoint environment;
    const bool is_last = slice == num_slices - 1;
    run(slice, slice * length, is_last ? num_items : (slice + 1) * length);
  });
}

template <typename Columns, typename T>
void run_for(const QuantizeFp8Problem& p, const Context& context) {
  const Call<Columns, T> call(p);
  if (p.scale != nullptr && p.num_scales() > 0) {
    std::memcpy(p.scales, p.scale, static_cast<std::size_t>(p.num_scales()) * sizeof(float));
  }
  if (p.group != Fp8Group::kTensor) {
    in_slices(p, p.num_scales(), context,
              [&](int, std::int64_t begin, std::int64_t end) { call.quantize_groups(begin, end); });
    return;
  }
  const std::int64_t num_elements = p.num_tokens * p.hidden_size;
  if (p.scale == nullptr) {
    std::array<std::int32_t, ThreadPool::kMaxSlices> largest{};
    in_slices(p, num_elements, context, [&](int slice, std::int64_t begin, std::int64_t end) {
      largest[static_cast<std::size_t>(slice)] = call.largest(begin, end);
    });
    const DefaultFloatingPoint environment;
    p.scales[0] = scale_for(std::bit_cast<float>(*std::ranges::max_element(largest)), p.use_ue8m0);
  }
  const float scale = p.scales[0];
  in_slices(p, num_elements, context,
            [&](int, std::int64_t begin, std::int64_t end) { call.quantize(begin, end, scale); });
}

template <typename Columns>
Status run(const QuantizeFp8Problem& p, const Context& context) {
  if (p.dtype.code == kDLBfloat) {
    run_for<Columns, Bfloat16>(p, context);
  } else if (p.dtype.bits == 16) {
    run_for<Columns, Float16>(p, context);
  } else {
    run_for<Columns, float>(p, context);
  }
  return {};
}

}  // namespace

Status quantize_fp8_avx2(const QuantizeFp8Problem& problem, const Context& context) {
  return run<WithAvx2>(problem, context);
}

Status quantize_fp8_avx2_refusal(const QuantizeFp8Problem&, const Context&, bool) {
  static const bool runs_here = has_avx2();
  return runs_here ? Status()
                   : Status(StatusCode::kUnsupported, "needs a processor with AVX2, FMA and F16C");
}

Status quantize_fp8_portable(const QuantizeFp8Problem& problem, const Context& context) {
  return run<Portably>(problem, context);
}

Status quantize_fp8_reference(const QuantizeFp8Problem& problem, const Context& context) {
  Context alone = context;
  alone.num_threads = 1;
  return run<Plainly>(problem, alone);
}

}  // namespace tessera::cpu
