#include "fused_experts_bounds.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <string>

#include "arrays.hpp"
#include "float_bits.hpp"
#include "fused_experts_arithmetic.hpp"
#include "fused_experts_operands.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

struct Sizes {
  explicit Sizes(const FusedExpertsArgs& args)
      : tokens(args.x.shape[0]),
        hidden(args.x.shape[1]),
        experts(args.w13.shape[0]),
        rows(args.w13.shape[1]),
        intermediate(args.w2.shape[2]),
        top_k(args.topk_ids.shape[1]) {}

  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t experts;
  std::int64_t rows;
  std::int64_t intermediate;
  std::int64_t top_k;
};

/// Which pairs count.
class Pairs {
 public:
  explicit Pairs(const FusedExpertsArgs& args) : args_(args) {}

  /// The expert of a pair, or -1 if it does not count.
  std::int64_t expert_of(std::int64_t token, std::int64_t slot) const {
    const TensorView& ids = args_.topk_ids;
    const std::int64_t index = token * ids.strides[0] + slot;
    std::int64_t id = ids.dtype.bits == 64 ? static_cast<const std::int64_t*>(ids.data)[index]
                                           : static_cast<const std::int32_t*>(ids.data)[index];
    if (args_.expert_map.given()) {
      if (id < 0 || id >= args_.expert_map.shape[0]) return -1;
      id = static_cast<const std::int32_t*>(args_.expert_map.data)[id];
    }
    return id >= 0 && id < args_.w13.shape[0] ? id : -1;
  }

  std::int64_t count(std::int64_t token) const {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < args_.topk_ids.shape[1]; ++s) {
      count += expert_of(token, s) < 0 ? 0 : 1;
    }
    return count;
  }

 private:
  const FusedExpertsArgs& args_;
};

/// A pair that counts.
struct Pair {
  std::size_t token = 0;  ///< index into the tokens of a chunk
  std::int64_t expert = 0;
  double router_weight = 0;
  std::vector<Bounded> intermediate;  ///< F
  std::vector<Bounded> row;           ///< of the columns that are checked, weighted
};

/// Computes the bounds of the elements of a call.
class Bounds {
 public:
  explicit Bounds(const FusedExpertsArgs& args)
      : args_(args),
        pairs_(args),
        sizes_(args),
        rule_(args),
        format_(format_of(args.output.dtype)),
        hidden_(args),
        intermediate_(args),
        w13_(args, args.w13, args.w13_scale),
        w2_(args, args.w2, args.w2_scale),
        router_weights_(args.topk_weights) {}

  void for_each(const VisitBound& visit) const {
    const std::vector<std::int64_t> columns = sampled_columns();
    const std::vector<std::int64_t> tokens = sampled_tokens(std::ssize(columns));
    // Chunks of tokens limit the memory that the values of pairs take.
    constexpr std::int64_t kMaxValues = 4'000'000;
    const std::int64_t per_token =
        sizes_.hidden + sizes_.top_k * (sizes_.intermediate + std::ssize(columns));
    const auto length = static_cast<std::size_t>(std::max<std::int64_t>(1, kMaxValues / per_token));
    for (std::size_t begin = 0; begin < tokens.size(); begin += length) {
      const auto chunk = std::span(tokens).subspan(begin, std::min(length, tokens.size() - begin));
      std::vector<Pair> pairs = pairs_of(chunk);
      std::vector<Pair*> by_expert(pairs.size());
      std::transform(pairs.begin(), pairs.end(), by_expert.begin(), [](Pair& p) { return &p; });
      std::ranges::stable_sort(by_expert, {}, &Pair::expert);
      first_product(chunk, by_expert);
      second_product(columns, by_expert);
      combine(chunk, columns, pairs, visit);
    }
  }

 private:
  bool has_scales() const { return has_fp8_weights(args_); }

  /// Of one of the two products with weights.
  ProductRule rule_of(std::int64_t num_roundings) const {
    // The arrays are on the host by now; this one's device is where the call ran.
    const bool has_tensor_cores = has_scales() && args_.output.device.device_type != kDLCPU;
    return {num_roundings, has_scales(), has_tensor_cores ? kFp8AccumulationError : 0};
  }

  std::int64_t work_of_pair(std::int64_t num_columns) const {
    return sizes_.rows * sizes_.hidden + num_columns * sizes_.intermediate;
  }

  std::uint64_t hash_of_sizes() const {
    std::uint64_t hash = 0;
    for (const std::int64_t size : {sizes_.tokens, sizes_.hidden, sizes_.experts, sizes_.rows,
                                    sizes_.intermediate, sizes_.top_k}) {
      hash = (hash ^ static_cast<std::uint64_t>(size)) * 0x9e3779b97f4a7c15U;
    }
    return hash;
  }

  /// All, or of each 1/kParts of a long row some at random, and both ends of the row.
  std::vector<std::int64_t> sampled_columns() const {
    std::int64_t pairs = 0;
    for (std::int64_t t = 0; t < sizes_.tokens; ++t) pairs += pairs_.count(t);
    constexpr std::int64_t kEnds = 64;
    constexpr std::int64_t kParts = 128;
    constexpr std::int64_t kPerPart = 2;
    std::vector<std::int64_t> columns;
    if (sizes_.hidden <= 2 * kEnds + kParts * kPerPart ||
        pairs * work_of_pair(sizes_.hidden) <= kMaxCheckedMultiplyAdds) {
      columns.resize(static_cast<std::size_t>(sizes_.hidden));
      std::iota(columns.begin(), columns.end(), 0);
      return columns;
    }
    RandomNumbers random(hash_of_sizes());
    for (std::int64_t i = 0; i < kEnds; ++i) columns.push_back(i);
    for (std::int64_t part = 0; part < kParts; ++part) {
      const std::int64_t begin = sizes_.hidden * part / kParts;
      const std::int64_t end = sizes_.hidden * (part + 1) / kParts;
      for (std::int64_t i = 0; i < kPerPart; ++i) {
        columns.push_back(begin + random.below(end - begin));
      }
    }
    for (std::int64_t i = 0; i < kEnds; ++i) columns.push_back(sizes_.hidden - 1 - i);
    std::ranges::sort(columns);
    columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
    return columns;
  }

  /// Of the tokens that have pairs, as many as the limit of work allows.
  std::vector<std::int64_t> sampled_tokens(std::int64_t num_columns) const {
    std::vector<std::int64_t> tokens;
    std::vector<std::int64_t> pairs_of_expert(static_cast<std::size_t>(sizes_.experts));
    for (std::int64_t t = 0; t < sizes_.tokens; ++t) {
      if (pairs_.count(t) > 0) tokens.push_back(t);
      for (std::int64_t s = 0; s < sizes_.top_k; ++s) {
        const std::int64_t expert = pairs_.expert_of(t, s);
        if (expert >= 0) ++pairs_of_expert[static_cast<std::size_t>(expert)];
      }
    }
    if (tokens.empty()) return tokens;
    const std::int64_t hot = std::ranges::max_element(pairs_of_expert) - pairs_of_expert.begin();
    RandomNumbers random(hash_of_sizes() + 1);
    for (std::size_t i = tokens.size() - 1; i > 0; --i) {
      std::swap(tokens[i], tokens[static_cast<std::size_t>(random.below(std::ssize(tokens)))]);
    }
    const auto is_of_hot_expert = [&](std::int64_t t) {
      for (std::int64_t s = 0; s < sizes_.top_k; ++s) {
        if (pairs_.expert_of(t, s) == hot) return true;
      }
      return false;
    };
    std::iter_swap(tokens.begin(), std::ranges::min_element(tokens));
    if (tokens.size() > 1) {
      std::iter_swap(tokens.begin() + 1, std::max_element(tokens.begin() + 1, tokens.end()));
    }
    if (tokens.size() > 2) {
      const auto found = std::find_if(tokens.begin() + 2, tokens.end(), is_of_hot_expert);
      if (found != tokens.end()) std::iter_swap(tokens.begin() + 2, found);
    }
    std::int64_t work = 0;
    std::size_t taken = 0;
    for (; taken < tokens.size(); ++taken) {
      work += pairs_.count(tokens[taken]) * work_of_pair(num_columns);
      if (taken > 0 && work > kMaxCheckedMultiplyAdds) break;
    }
    tokens.resize(taken);
    std::ranges::sort(tokens);
    return tokens;
  }

  /// In the order of tokens and slots.
  std::vector<Pair> pairs_of(std::span<const std::int64_t> tokens) const {
    std::vector<Pair> pairs;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      for (std::int64_t s = 0; s < sizes_.top_k; ++s) {
        const std::int64_t expert = pairs_.expert_of(tokens[i], s);
        if (expert < 0) continue;
        const std::int64_t at = tokens[i] * args_.topk_weights.strides[0] + s;
        pairs.push_back({i, expert, router_weights_.at(at), {}, {}});
      }
    }
    return pairs;
  }

  static double bias_of(const TensorView& bias, std::int64_t expert, std::int64_t row) {
    if (!bias.given()) return 0;
    return value_of(format_of(bias.dtype), float_bits_at(bias, expert * bias.strides[0] + row));
  }

  /// Calls visit(expert, its pairs) for each expert of `by_expert`.
  template <typename Visit>
  static void for_each_expert(std::span<Pair* const> by_expert, const Visit& visit) {
    for (auto begin = by_expert.begin(); begin != by_expert.end();) {
      const std::int64_t expert = (*begin)->expert;
      const auto end = std::find_if(begin, by_expert.end(),
                                    [&](const Pair* pair) { return pair->expert != expert; });
      visit(expert, std::span(begin, end));
      begin = end;
    }
  }

  void first_product(std::span<const std::int64_t> tokens, std::span<Pair* const> by_expert) const {
    std::vector<BoundedVector> x(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) hidden_.read(tokens[i], &x[i]);
    const bool interleaved = rule_.activation == Activation::kSwigluoai;
    const bool gated = has_gate(rule_.activation);
    std::array<WeightRow, 2> rows;
    for_each_expert(by_expert, [&](std::int64_t expert, std::span<Pair* const> pairs) {
      for (std::int64_t f = 0; f < sizes_.intermediate; ++f) {
        const std::array at = {interleaved ? 2 * f : f,
                               interleaved ? 2 * f + 1 : sizes_.intermediate + f};
        std::array<double, 2> biases{};
        for (std::size_t i = 0; i < (gated ? 2U : 1U); ++i) {
          w13_.read(expert, at[i], &rows[i]);
          biases[i] = bias_of(args_.w13_bias, expert, at[i]);
        }
        for (Pair* const pair : pairs) {
          const double v = args_.apply_router_weight_on_input ? pair->router_weight : 1;
          const auto g = [&](std::size_t i) {
            return product(rows[i], x[pair->token], v, biases[i],
                           rule_of(sizes_.hidden + (has_scales() ? 4 : 3)));
          };
          pair->intermediate.push_back(rounded_activation(rule_, g(0), gated ? g(1) : Bounded{},
                                                          has_scales() ? kFloat32Format : format_));
        }
      }
    });
  }

  void second_product(std::span<const std::int64_t> columns,
                      std::span<Pair* const> by_expert) const {
    WeightRow row;
    WeightRow weight;
    BoundedVector y;
    std::vector<BoundedVector> activated;
    for_each_expert(by_expert, [&](std::int64_t expert, std::span<Pair* const> pairs) {
      activated.resize(pairs.size());
      for (std::size_t i = 0; i < pairs.size(); ++i) {
        intermediate_.assign(pairs[i]->intermediate, &activated[i]);
      }
      for (const std::int64_t column : columns) {
        w2_.read(expert, column, &row);
        const double bias = bias_of(args_.w2_bias, expert, column);
        for (std::size_t i = 0; i < pairs.size(); ++i) {
          y.assign(std::array{product(row, activated[i], 1, bias,
                                      rule_of(sizes_.intermediate + (has_scales() ? 4 : 1)))});
          weight.resize(1)[0] = args_.apply_router_weight_on_input ? 1 : pairs[i]->router_weight;
          weight.finish();
          pairs[i]->row.push_back(kept_or_rounded(product(weight, y, 1, 0, {1}), format_));
        }
      }
    });
  }

  void combine(std::span<const std::int64_t> tokens, std::span<const std::int64_t> columns,
               std::span<const Pair> pairs, const VisitBound& visit) const {
    WeightRow ones;
    BoundedVector terms;
    std::vector<Bounded> elements;
    for (std::size_t token = 0, begin = 0; token < tokens.size(); ++token) {
      std::size_t end = begin;
      while (end < pairs.size() && pairs[end].token == token) ++end;
      const auto of_token = pairs.subspan(begin, end - begin);
      std::ranges::fill(ones.resize(of_token.size()), 1.0);
      ones.finish();
      for (std::size_t i = 0; i < columns.size(); ++i) {
        elements.clear();
        for (const Pair& pair : of_token) elements.push_back(pair.row[i]);
        terms.assign(elements);
        visit(tokens[token], columns[i], product(ones, terms, 1, 0, {sizes_.top_k}));
      }
      begin = end;
    }
  }

  const FusedExpertsArgs& args_;
  const Pairs pairs_;
  const Sizes sizes_;
  const ActivationRule rule_;
  const FloatFormat format_;
  const HiddenStates hidden_;
  const Intermediate intermediate_;
  const WeightRows w13_;
  const WeightRows w2_;
  const FloatReader router_weights_;
};

}  // namespace

bool has_pairs(const FusedExpertsArgs& args, std::int64_t token) {
  return Pairs(args).count(token) > 0;
}

void for_each_bound(const FusedExpertsArgs& args, const VisitBound& visit) {
  Bounds(args).for_each(visit);
}

}  // namespace tessera::contract
