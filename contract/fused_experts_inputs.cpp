// Turns cases of fused_experts into inputs.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "arrays.hpp"
#include "float_array.hpp"
#include "fused_experts_cases.hpp"
#include "random_floats.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Case = FusedExpertsCase;

/// The exponent of a weight's scale that keeps a sum over `length` as large as its terms.
int weight_exponent(std::int64_t length) {
  return -(std::bit_width(static_cast<std::uint64_t>(length)) - 1) / 2;
}

bool is_fp8(const Case& c) { return c.scales != ExpertScales::kNoScales; }

/// Whether x is given in float8_e4m3fn.
bool is_x_fp8(const Case& c) { return is_fp8(c) && c.hidden >= HiddenScales::kFp8Rows; }

/// Elements in float8_e4m3fn are as large as this, which their scales make up for.
constexpr int kFp8Exponent = 8;

/// The exponent of the largest hidden states.
int hidden_exponent(const Case& c) {
  // A quantised intermediate has a bound up to about 2^100.
  if (c.values == ExpertValues::kLarge && is_fp8(c)) return 12;
  if (c.is_tiny) return -36;
  if (c.values == ExpertValues::kLarge) return c.format.max_exponent == 15 ? 6 : 60;
  if (c.values == ExpertValues::kSubnormal) return c.format.min_exponent();
  return 1;
}

std::int64_t num_ids(const Case& c) {
  return c.num_global_experts > 0 ? c.num_global_experts : c.num_experts;
}

std::vector<std::int64_t> draw_ids(const Case& c, RandomNumbers* random) {
  std::vector<std::int64_t> ids;
  const std::int64_t count = num_ids(c);
  const std::int64_t hot = random->below(count);
  const std::int64_t few[] = {hot, random->below(count), random->below(count)};
  const auto draw = [&](std::int64_t slot) -> std::int64_t {
    const auto token_begin = ids.end() - slot;
    switch (c.routing) {
      case ExpertRouting::kNone:
        return -1;
      case ExpertRouting::kHot:
        if (!random->one_in(4)) return hot;
        break;
      case ExpertRouting::kFew:
        return few[random->below(3)];
      case ExpertRouting::kDuplicates:
        if (slot > 0) return *token_begin;
        break;
      case ExpertRouting::kMixed: {
        if (random->one_in(2)) break;
        const std::int64_t valid = random->below(count);
        const std::int64_t far[] = {
            (std::int64_t{1} << 32) + valid, valid - (std::int64_t{1} << 32),
            std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()};
        if (c.int64_ids && random->one_in(2)) return far[random->below(4)];
        const std::int64_t near[] = {-1,    -1,        -2,
                                     count, count + 1, std::numeric_limits<std::int32_t>::max()};
        return near[random->below(6)];
      }
      case ExpertRouting::kUniform:
        break;
    }
    std::int64_t id = random->below(count);
    while (c.routing == ExpertRouting::kUniform && slot < count &&
           std::find(token_begin, ids.end(), id) != ids.end()) {
      id = (id + 1) % count;
    }
    return id;
  };
  for (std::int64_t t = 0; t < c.num_tokens; ++t) {
    for (std::int64_t s = 0; s < c.top_k; ++s) ids.push_back(draw(s));
  }
  return ids;
}

/// About half of the global experts are here; the others' entries are below 0, or too large.
std::vector<std::int32_t> draw_expert_map(const Case& c, RandomNumbers* random) {
  std::vector<std::int32_t> map(static_cast<std::size_t>(c.num_global_experts));
  for (std::int32_t& row : map) {
    row = static_cast<std::int32_t>(random->below(c.num_experts));
    if (random->one_in(3)) row = -1;
    if (random->one_in(8)) row = static_cast<std::int32_t>(c.num_experts);
    if (random->one_in(16)) row = any_int32(*random);
  }
  return map;
}

double special(RandomNumbers* random) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!random->one_in(4)) return std::numeric_limits<double>::quiet_NaN();
  return random->one_in(2) ? kInfinity : -kInfinity;
}

class Inputs {
 public:
  Inputs(const Case& c, const std::vector<std::int64_t>* ids, std::uint64_t seed)
      : c_(c), random_(seed), made_("fused_experts") {
    if (c.num_global_experts > 0) map_ = draw_expert_map(c, &random_);
    ids_ = ids != nullptr ? *ids : draw_ids(c, &random_);
    experts_.reserve(ids_.size());
    for (const std::int64_t id : ids_) experts_.push_back(expert_of(id));
    is_used_.resize(static_cast<std::size_t>(c.num_experts));
    for (const std::int64_t expert : experts_) {
      if (expert >= 0) is_used_[static_cast<std::size_t>(expert)] = true;
    }
  }

  CaseArguments make() {
    FusedExpertsArgs& args = made_.args();
    const std::int64_t size = c_.intermediate_size;
    const std::int64_t num_rows = has_gate(c_.activation) ? 2 * size : size;
    args.activation = c_.activation;
    args.apply_router_weight_on_input = c_.weight_on_input;
    args.batch_invariant = c_.batch_invariant;
    args.swiglu_alpha = c_.swiglu_alpha;
    args.swiglu_beta = c_.swiglu_beta;
    args.swiglu_limit = c_.swiglu_limit;
    args.use_ue8m0 = c_.use_ue8m0;
    args.x = hidden_states();
    args.w13 = weights(num_rows, c_.hidden_size, c_.values == ExpertValues::kCancelling);
    args.w2 = weights(c_.hidden_size, size, false);
    args.topk_weights = router_weights();
    args.topk_ids = topk_ids();
    if (!map_.empty()) args.expert_map = made_.input(map_);
    if (c_.w13_bias) args.w13_bias = bias(num_rows);
    if (c_.w2_bias) args.w2_bias = bias(c_.hidden_size);
    if (is_fp8(c_)) {
      args.w13_scale =
          weight_scales(num_rows, c_.hidden_size, has_halves(), c_.has_outlier ? size - 1 : -1);
      args.w2_scale = weight_scales(c_.hidden_size, size, false, -1);
      args.x_scale = hidden_scales();
      if (c_.hidden == HiddenScales::kStatic || c_.hidden == HiddenScales::kFp8Static) {
        args.intermediate_scale = made_.input(bytes_of_floats({drawn_scale(-8)}), kFloat32, {1});
      }
    }
    args.output = strided(output(dtype_of(c_.format), {c_.num_tokens, c_.hidden_size}),
                          {c_.hidden_size + c_.gap, 1});
    return made_.finish();
  }

 private:
  std::int64_t expert_of(std::int64_t id) const {
    if (id < 0 || id >= num_ids(c_)) return -1;
    const std::int64_t expert = map_.empty() ? id : map_[static_cast<std::size_t>(id)];
    return expert < c_.num_experts ? expert : -1;
  }

  bool is_exact() const { return c_.values == ExpertValues::kExact; }

  Filler filler(int exponent) {
    const auto low = static_cast<std::uint64_t>(random_.below(std::int64_t{1} << 32));
    return {low, exponent, is_exact()};
  }

  bool draws_special() { return c_.values == ExpertValues::kSpecial && random_.one_in(8); }

  bool has_halves() const {
    return has_gate(c_.activation) && c_.activation != Activation::kSwigluoai;
  }

  bool is_token_used(std::int64_t token) const {
    const auto first = experts_.begin() + token * c_.top_k;
    return std::any_of(first, first + c_.top_k, [](std::int64_t e) { return e >= 0; });
  }

  TensorView hidden_states() {
    const FloatFormat format = is_x_fp8(c_) ? kFloat8Format : c_.format;
    FloatArray x(format, {c_.num_tokens, c_.hidden_size}, c_.gap);
    Filler values = filler(is_x_fp8(c_) && !is_exact() ? kFp8Exponent : hidden_exponent(c_));
    for (std::int64_t t = 0; t < c_.num_tokens; ++t) {
      if (!is_token_used(t)) continue;
      const std::int64_t row = t * x.stride(0);
      values.fill(&x, row, c_.hidden_size);
      for (std::int64_t h = 0; h < c_.hidden_size; ++h) {
        if (c_.values == ExpertValues::kZero || (c_.zero_groups && (h / 128 + t) % 2 == 0)) {
          x.set(row + h, 0);
        }
        if (c_.has_ties) x.set_value(row + h, tie(h));
        if (c_.values == ExpertValues::kSubnormal && !is_x_fp8(c_)) {
          x.set(row + h, float_with_exponent(c_.format, 0, 1, random_));
        }
        if (c_.values == ExpertValues::kCancelling && h % 2 == 1) {
          x.set(row + h, x.get(row + h - 1));
        }
      }
      if (draws_special()) x.set_value(row + random_.below(c_.hidden_size), special(&random_));
    }
    return made_.input(std::move(x.memory()), is_x_fp8(c_) ? kFloat8E4m3 : dtype_of(c_.format),
                       {c_.num_tokens, c_.hidden_size}, {x.stride(0), 1});
  }

  /// Makes the scale 7, and quotients ties: products with the float32 nearest to 1 / 7 are none.
  double tie(std::int64_t h) {
    if (h % 128 == 0) return 7 * 448;
    const auto exponent = static_cast<int>(random_.below(8));
    return 7 * std::ldexp(static_cast<double>(17 + 2 * random_.below(8)), exponent - 4);
  }

  static std::vector<std::byte> bytes_of_floats(const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }

  /// About 2^`exponent`; a power of two where sums have to be exact.
  float drawn_scale(int exponent) {
    if (is_exact()) return std::ldexp(1.0F, exponent + static_cast<int>(random_.below(3)));
    if (draws_special()) return static_cast<float>(special(&random_));
    return std::ldexp(1 + static_cast<float>(random_.below(1 << 23)) * 0x1p-23F, exponent);
  }

  TensorView weight_scales(std::int64_t rows, std::int64_t columns, bool in_halves,
                           std::int64_t outlier) {
    const auto blocks = [](std::int64_t length) { return (length + 127) / 128; };
    std::int64_t scale_rows = 1;
    std::int64_t scale_columns = 1;
    if (c_.scales == ExpertScales::kPerRow) scale_rows = rows;
    if (c_.scales == ExpertScales::kBlocks) {
      scale_rows = in_halves ? 2 * blocks(rows / 2) : blocks(rows);
      scale_columns = blocks(columns);
    }
    const int exponent = weight_exponent(columns) - (is_exact() ? 0 : kFp8Exponent);
    std::vector<float> scales;
    for (std::int64_t e = 0; e < c_.num_experts; ++e) {
      const bool is_used = is_used_[static_cast<std::size_t>(e)];
      for (std::int64_t i = 0; i < scale_rows * scale_columns; ++i) {
        const bool is_ordinary = c_.values != ExpertValues::kSpecial || !random_.one_in(4);
        scales.push_back(
            !is_used ? std::numeric_limits<float>::quiet_NaN()
            : is_ordinary
                ? std::ldexp(1.0F + 0.125F * static_cast<float>(is_exact() ? 0 : random_.below(8)),
                             exponent + static_cast<int>(random_.below(3)) + (i == outlier ? 8 : 0))
                : drawn_scale(exponent));
      }
    }
    if (c_.scales == ExpertScales::kPerExpert) {
      return made_.input(bytes_of_floats(scales), kFloat32, {c_.num_experts});
    }
    return made_.input(bytes_of_floats(scales), kFloat32,
                       {c_.num_experts, scale_rows, scale_columns});
  }

  TensorView hidden_scales() {
    const int exponent = is_exact() ? (is_x_fp8(c_) ? -1 : -4) : hidden_exponent(c_) - kFp8Exponent;
    switch (c_.hidden) {
      case HiddenScales::kComputed:
        return {};
      case HiddenScales::kFp8Rows: {
        const std::int64_t columns =
            c_.scales == ExpertScales::kBlocks ? (c_.hidden_size + 127) / 128 : 1;
        std::vector<float> scales;
        for (std::int64_t i = 0; i < c_.num_tokens * columns; ++i) {
          scales.push_back(is_token_used(i / columns) ? drawn_scale(exponent)
                                                      : std::numeric_limits<float>::quiet_NaN());
        }
        return made_.input(bytes_of_floats(scales), kFloat32, {c_.num_tokens, columns});
      }
      default:
        return made_.input(bytes_of_floats({drawn_scale(exponent)}), kFloat32, {1});
    }
  }

  TensorView weights(std::int64_t rows, std::int64_t columns, bool cancel) {
    const std::int64_t outer = c_.transposed ? columns : rows;
    const std::int64_t inner = c_.transposed ? rows : columns;
    FloatArray w(is_fp8(c_) ? kFloat8Format : c_.format, {c_.num_experts, outer, inner}, c_.gap);
    const std::int64_t row_stride = c_.transposed ? 1 : w.stride(1);
    const std::int64_t column_stride = c_.transposed ? w.stride(1) : 1;
    Filler values = filler(!is_fp8(c_)  ? 1 + weight_exponent(columns)
                           : is_exact() ? 1
                                        : kFp8Exponent);
    for (std::int64_t e = 0; e < c_.num_experts; ++e) {
      if (!is_used_[static_cast<std::size_t>(e)]) continue;
      const std::int64_t begin = e * w.stride(0);
      for (std::int64_t i = 0; i < outer; ++i) values.fill(&w, begin + i * w.stride(1), inner);
      for (std::int64_t row = 0; cancel && row < rows; ++row) {
        for (std::int64_t column = 1; column < columns; column += 2) {
          const std::int64_t at = begin + row * row_stride + column * column_stride;
          w.set(at, w.get(at - column_stride) ^ w.format().sign_bit() ^ random_bits(random_, 1));
        }
      }
      if (draws_special()) {
        w.set_value(
            begin + random_.below(rows) * row_stride + random_.below(columns) * column_stride,
            special(&random_));
      }
    }
    return made_.input(std::move(w.memory()), is_fp8(c_) ? kFloat8E4m3 : dtype_of(c_.format),
                       {c_.num_experts, rows, columns}, {w.stride(0), row_stride, column_stride});
  }

  TensorView router_weights() {
    FloatArray w(c_.router_format, {c_.num_tokens, c_.top_k}, c_.gap);
    Filler values = filler(0);
    for (std::int64_t t = 0; t < c_.num_tokens; ++t) {
      for (std::int64_t s = 0; s < c_.top_k; ++s) {
        if (experts_[static_cast<std::size_t>(t * c_.top_k + s)] < 0) continue;
        const std::int64_t at = t * w.stride(0) + s;
        if (is_exact()) {
          const double powers[] = {0.5, 0.25, -0.5, 1, 2};
          w.set_value(at, powers[random_.below(5)]);
        } else {
          values.fill(&w, at, 1);
        }
        if (draws_special() && random_.one_in(4)) w.set_value(at, special(&random_));
      }
    }
    return made_.input(std::move(w.memory()), dtype_of(c_.router_format), {c_.num_tokens, c_.top_k},
                       {w.stride(0), 1});
  }

  TensorView topk_ids() {
    const std::int64_t stride = c_.top_k + c_.gap;
    std::vector<std::int64_t> ids;
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      // Id 0 in the gaps would count if it were read.
      if (i > 0 && i % static_cast<std::size_t>(c_.top_k) == 0) {
        ids.resize(ids.size() + static_cast<std::size_t>(c_.gap));
      }
      ids.push_back(ids_[i]);
    }
    std::vector<std::byte> bytes(ids.size() * (c_.int64_ids ? 8 : 4));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto narrow = static_cast<std::int32_t>(ids[i]);
      if (c_.int64_ids) {
        std::memcpy(bytes.data() + 8 * i, &ids[i], 8);
      } else {
        std::memcpy(bytes.data() + 4 * i, &narrow, 4);
      }
    }
    return made_.input(std::move(bytes), c_.int64_ids ? kInt64 : kInt32, {c_.num_tokens, c_.top_k},
                       {stride, 1});
  }

  TensorView bias(std::int64_t length) {
    FloatArray b(c_.format, {c_.num_experts, length}, c_.gap);
    Filler values = filler(0);
    for (std::int64_t e = 0; e < c_.num_experts; ++e) {
      if (is_used_[static_cast<std::size_t>(e)]) values.fill(&b, e * b.stride(0), length);
    }
    return made_.input(std::move(b.memory()), dtype_of(c_.format), {c_.num_experts, length},
                       {b.stride(0), 1});
  }

  const Case& c_;
  RandomNumbers random_;
  CaseBuilder<FusedExpertsArgs> made_;
  std::vector<std::int32_t> map_;
  std::vector<std::int64_t> ids_;
  std::vector<std::int64_t> experts_;  // of the pairs; -1: does not count
  std::vector<bool> is_used_;
};

}  // namespace

CaseArguments make_arguments(const FusedExpertsCase& c, std::uint64_t seed) {
  return Inputs(c, nullptr, seed).make();
}

CaseArguments make_arguments(const FusedExpertsCase& c, const std::vector<std::int64_t>& ids,
                             std::uint64_t seed) {
  return Inputs(c, &ids, seed).make();
}

}  // namespace tessera::contract
