#include "fused_experts_fp8_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "float8_values.hpp"

namespace tessera::contract {
namespace {

std::int64_t num_blocks(std::int64_t length) { return (length + 127) / 128; }

const float* floats(const TensorView& view) { return static_cast<const float*>(view.data); }

float fp8_nearest(float value) { return static_cast<float>(fp8_value_of(fp8_bits_of(value))); }

float fp8_truncated(float value) {
  if (std::isnan(value)) return value;
  const auto magnitude = static_cast<float>(fp8_magnitude_of(largest_fp8_below(std::abs(value))));
  return std::copysign(magnitude, value);
}

}  // namespace

bool Fp8Model::has_blocks() const {
  const TensorView& scale = args_.w13_scale;
  return scale.ndim == 3 && !(scale.shape[1] == args_.w13.shape[1] && scale.shape[2] == 1 &&
                              args_.w2_scale.shape[1] == args_.w2.shape[1]);
}

Fp8Elements Fp8Model::quantized(std::span<const float> elements, const float* given) const {
  // quantize_fp8 flushes nothing.
  const DefaultFloatEnvironment environment;
  if (fault_ == Fp8Fault::kComputesGivenScales) given = nullptr;
  const bool is_cut = has_blocks() && fault_ != Fp8Fault::kOneScalePerToken;
  const std::size_t group = is_cut ? 128 : elements.size();
  Fp8Elements result;
  for (std::size_t begin = 0; begin < elements.size(); begin += group) {
    const auto part = elements.subspan(begin, std::min(group, elements.size() - begin));
    float amax = fault_ == Fp8Fault::kSmallerLeastScale ? 1e-12F : 1e-10F;
    for (const float one : part) {
      const bool counts = std::isfinite(one) || fault_ == Fp8Fault::kInfinityCounts;
      if (counts && !std::isnan(one)) amax = std::max(amax, std::abs(one));
    }
    float scale = amax / 448;
    if (args_.use_ue8m0 && fault_ != Fp8Fault::kIgnoresUe8m0) {
      const bool is_down = fault_ == Fp8Fault::kUe8m0RoundsDown;
      scale = std::exp2(is_down ? std::floor(std::log2(scale)) : std::ceil(std::log2(scale)));
    }
    if (given != nullptr) scale = *given;
    for (const float one : part) {
      const float quotient = fault_ == Fp8Fault::kReciprocal ? one * (1 / scale) : one / scale;
      float value =
          fault_ == Fp8Fault::kTruncates ? fp8_truncated(quotient) : fp8_nearest(quotient);
      if (fault_ == Fp8Fault::kHidesNan && std::isnan(value)) value = 0;
      result.values.push_back(value);
      result.scales.push_back(scale);
    }
  }
  return result;
}

Fp8Elements Fp8Model::hidden(std::int64_t token, std::span<const float> x) const {
  const TensorView& scales = args_.x_scale;
  if (args_.x.dtype.bits != 8) return quantized(x, floats(scales));
  Fp8Elements result{{x.begin(), x.end()}, {}};
  for (std::size_t h = 0; h < x.size(); ++h) {
    const auto column = static_cast<std::int64_t>(h) / 128;
    const std::int64_t index =
        scales.ndim < 2 ? 0 : token * scales.shape[1] + (has_blocks() ? column : 0);
    result.scales.push_back(floats(scales)[index]);
  }
  return result;
}

Fp8Elements Fp8Model::intermediate(std::span<const float> activated) const {
  std::vector<float> elements(activated.begin(), activated.end());
  if (fault_ == Fp8Fault::kKeepsIntermediate) {
    return {elements, std::vector<float>(elements.size(), 1)};
  }
  if (fault_ == Fp8Fault::kRoundsIntermediate) {
    for (float& one : elements) one = static_cast<float>(rounded(kBfloat16Format, one));
  }
  return quantized(elements, floats(args_.intermediate_scale));
}

float Fp8Model::weight_scale(bool is_first, std::int64_t expert, std::int64_t row,
                             std::int64_t column) const {
  const TensorView& scales = is_first ? args_.w13_scale : args_.w2_scale;
  if (fault_ == Fp8Fault::kScalesOfFirstExpert) expert = 0;
  if (scales.ndim == 1) return floats(scales)[expert];
  const std::int64_t rows = scales.shape[1];
  const std::int64_t columns = scales.shape[2];
  if (!has_blocks()) return floats(scales)[expert * rows + row];
  const std::int64_t size = args_.w2.shape[2];
  const bool is_up = is_first && has_gate(args_.activation) &&
                     args_.activation != Activation::kSwigluoai && row >= size &&
                     fault_ != Fp8Fault::kUpBlocksContinue;
  std::int64_t i = is_up ? num_blocks(size) + (row - size) / 128 : row / 128;
  std::int64_t j = column / 128;
  if (fault_ == Fp8Fault::kScalesOfNextBlock) j = (j + 1) % columns;
  if (fault_ == Fp8Fault::kScalesExchanged) {
    const std::int64_t flat = j * rows + i;
    i = flat / columns;
    j = flat % columns;
  }
  return floats(scales)[(expert * rows + i) * columns + j];
}

float Fp8Model::product(bool is_first, std::int64_t expert, std::int64_t row,
                        const Fp8Elements& vector, float bias,
                        const std::function<float(std::int64_t)>& weight) const {
  const auto length = static_cast<std::int64_t>(vector.values.size());
  const auto at = [](const std::vector<float>& values, std::int64_t i) {
    return values[static_cast<std::size_t>(i)];
  };
  if (fault_ == Fp8Fault::kScalesBias) bias *= weight_scale(is_first, expert, row, 0);
  float total = 0;
  if (order_ == Fp8Order::kScalesFirst) {
    for (std::int64_t k = length - 1; k >= 0; --k) {
      total += weight(k) * weight_scale(is_first, expert, row, k) *
               (at(vector.values, k) * at(vector.scales, k));
    }
    return total + bias;
  }
  for (std::int64_t begin = 0; begin < length; begin += 128) {
    const float scale = weight_scale(is_first, expert, row, begin);
    float sum = 0;
    for (std::int64_t k = begin; k < std::min(begin + 128, length); ++k) {
      if (order_ == Fp8Order::kSumsFirst) {
        sum += weight(k) * at(vector.values, k);
      } else {
        sum = std::fma(weight(k), at(vector.values, k) * at(vector.scales, k), sum);
      }
    }
    total += order_ == Fp8Order::kSumsFirst ? scale * at(vector.scales, begin) * sum : scale * sum;
  }
  return total + bias;
}

}  // namespace tessera::contract
