#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "align_block_size_cases.hpp"
#include "arrays.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

/// Values of the case's type that lie outside [0, E), as two's complement.
std::vector<std::int64_t> broken_values(const AlignBlockSizeCase& c) {
  const int bits = c.dtype.bits;
  if (c.dtype.code == kDLUInt) {
    const std::uint64_t largest = ~std::uint64_t{0} >> (64 - bits);
    std::vector<std::int64_t> values;
    for (const std::uint64_t value : {static_cast<std::uint64_t>(c.num_experts), largest}) {
      if (std::cmp_greater_equal(value, c.num_experts) && value <= largest) {
        values.push_back(std::bit_cast<std::int64_t>(value));
      }
    }
    return values;
  }
  const std::int64_t largest = std::numeric_limits<std::int64_t>::max() >> (64 - bits);
  std::vector<std::int64_t> values = {-1, -largest - 1};
  for (const std::int64_t value : {c.num_experts, largest}) {
    if (value >= c.num_experts && value <= largest) values.push_back(value);
  }
  return values;
}

/// Draws experts with popularity rank^-1.2, ranks in a random order.
class ZipfExperts {
 public:
  ZipfExperts(std::int64_t num_experts, RandomNumbers& random)
      : experts_(static_cast<std::size_t>(num_experts)), ceilings_(experts_.size()) {
    std::iota(experts_.begin(), experts_.end(), std::int64_t{0});
    std::int64_t total = 0;
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      std::swap(experts_[i], experts_[i + static_cast<std::size_t>(random.below(
                                              num_experts - static_cast<std::int64_t>(i)))]);
      // Integers with so few bits that differences in the last digit of pow() do not show.
      total += 1 + std::llround(0x1p24 * std::pow(static_cast<double>(i + 1), -1.2));
      ceilings_[i] = total;
    }
  }

  std::vector<std::int64_t> weights() const {
    std::vector<std::int64_t> found(experts_.size());
    for (std::size_t i = 0; i < experts_.size(); ++i) {
      found[static_cast<std::size_t>(experts_[i])] = ceilings_[i] - (i == 0 ? 0 : ceilings_[i - 1]);
    }
    return found;
  }

  std::int64_t draw(RandomNumbers& random) const {
    const std::int64_t point = random.below(ceilings_.back());
    const auto rank = std::upper_bound(ceilings_.begin(), ceilings_.end(), point);
    return experts_[static_cast<std::size_t>(rank - ceilings_.begin())];
  }

 private:
  std::vector<std::int64_t> experts_;   // by rank
  std::vector<std::int64_t> ceilings_;  // running sum of the weights, by rank
};

/// Draws experts that are equally likely.
class UniformExperts {
 public:
  explicit UniformExperts(std::int64_t num_experts) : num_experts_(num_experts) {}

  std::vector<std::int64_t> weights() const {
    return std::vector<std::int64_t>(static_cast<std::size_t>(num_experts_), 1);
  }

  std::int64_t draw(RandomNumbers& random) const { return random.below(num_experts_); }

 private:
  std::int64_t num_experts_;
};

/// Draws experts by weight, without those already taken, in time logarithmic in their number.
class RemainingExperts {
 public:
  explicit RemainingExperts(std::vector<std::int64_t> weights)
      : weights_(std::move(weights)), sums_(weights_.size() + 1) {
    for (std::size_t expert = 0; expert < weights_.size(); ++expert) add(expert, weights_[expert]);
  }

  std::int64_t draw(RandomNumbers& random) const {
    std::int64_t point = random.below(total_);
    std::size_t expert = 0;
    for (std::size_t step = std::bit_floor(weights_.size()); step != 0; step /= 2) {
      if (expert + step < sums_.size() && sums_[expert + step] <= point) {
        expert += step;
        point -= sums_[expert];
      }
    }
    return static_cast<std::int64_t>(expert);
  }

  void take(std::int64_t expert) {
    const auto index = static_cast<std::size_t>(expert);
    add(index, -weights_[index]);
  }

  void put_back(std::int64_t expert) {
    const auto index = static_cast<std::size_t>(expert);
    add(index, weights_[index]);
  }

 private:
  void add(std::size_t expert, std::int64_t weight) {
    total_ += weight;
    for (std::size_t i = expert + 1; i < sums_.size(); i += i & -i) sums_[i] += weight;
  }

  std::vector<std::int64_t> weights_;
  std::vector<std::int64_t> sums_;  // a tree of P. M. Fenwick, 1994
  std::int64_t total_ = 0;
};

/// Ids of all tokens, without repetition inside a token if there are enough experts. Repeated ids
/// are drawn again; if a token takes so many experts that this would take long, the draw is from
/// the remaining experts, with the same probabilities.
template <typename Experts>
std::vector<std::int64_t> draw_ids(const AlignBlockSizeCase& c, RandomNumbers& random,
                                   const Experts& experts) {
  const std::int64_t num_experts = nameable_experts(c);
  const bool may_repeat = c.top_k > num_experts;
  const bool takes_many = !may_repeat && 4 * c.top_k > num_experts;
  const std::int64_t hot = random.below(num_experts);
  RemainingExperts remaining(takes_many ? experts.weights() : std::vector<std::int64_t>{});
  std::vector<std::int64_t> ids(static_cast<std::size_t>(c.num_tokens * c.top_k));
  for (auto token = ids.begin(); token != ids.end(); token += c.top_k) {
    for (std::int64_t slot = 0; slot < c.top_k; ++slot) {
      const bool is_hot = slot == 0 && c.distribution == IdDistribution::kOneExpert;
      std::int64_t expert = hot;
      if (!is_hot) expert = takes_many ? remaining.draw(random) : experts.draw(random);
      while (!may_repeat && !takes_many && std::find(token, token + slot, expert) != token + slot) {
        expert = experts.draw(random);
      }
      token[slot] = expert;
      if (takes_many) remaining.take(expert);
    }
    if (takes_many) std::for_each(token, token + c.top_k, [&](auto id) { remaining.put_back(id); });
  }
  return ids;
}

template <typename T>
std::vector<std::byte> as_bytes(const std::vector<std::int64_t>& ids) {
  std::vector<std::byte> bytes(ids.size() * sizeof(T));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const T id = static_cast<T>(ids[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &id, sizeof(T));
  }
  return bytes;
}

std::vector<std::int32_t> make_map(const AlignBlockSizeCase& c) {
  const std::int32_t remote[] = {-1, -2, static_cast<std::int32_t>(c.num_experts),
                                 std::numeric_limits<std::int32_t>::min(),
                                 std::numeric_limits<std::int32_t>::max()};
  std::vector<std::int32_t> map(static_cast<std::size_t>(c.num_experts), -1);
  for (std::size_t e = 0; e < map.size(); ++e) {
    const auto expert = static_cast<std::int32_t>(e);
    switch (c.map) {
      case MapKind::kNone:
      case MapKind::kAllRemote:
        break;
      case MapKind::kIdentity:
        map[e] = expert;
        break;
      case MapKind::kHalfRemote:
        if (e % 2 == 0) map[e] = expert / 2;
        break;
      case MapKind::kBroken:
        map[e] = e % 2 == 0 ? expert / 2 : remote[e / 2 % std::size(remote)];
        break;
      case MapKind::kMerged:
        map[e] = std::max(expert - 1, 0);
        break;
    }
  }
  return map;
}

}  // namespace

std::int64_t nameable_experts(const AlignBlockSizeCase& c) {
  const int value_bits = c.dtype.bits - (c.dtype.code == kDLInt ? 1 : 0);
  return value_bits >= 32 ? c.num_experts : std::min(c.num_experts, std::int64_t{1} << value_bits);
}

AlignBlockSizeInputs make_inputs(const AlignBlockSizeCase& c, std::uint64_t seed) {
  RandomNumbers random(seed);
  std::vector<std::int64_t> ids;
  if (c.distribution == IdDistribution::kZipf) {
    ids = draw_ids(c, random, ZipfExperts(nameable_experts(c), random));
  } else {
    ids = draw_ids(c, random, UniformExperts(nameable_experts(c)));
  }
  if (c.distribution == IdDistribution::kSorted) std::sort(ids.begin(), ids.end());

  const std::vector<std::int64_t> broken = broken_values(c);
  if (c.broken != BrokenIds::kNone && !broken.empty()) {
    for (std::int64_t& id : ids) {
      if (c.broken == BrokenIds::kAll || random.one_in(8)) {
        id = broken[static_cast<std::size_t>(random.below(std::ssize(broken)))];
      }
    }
  }

  AlignBlockSizeInputs inputs;
  switch (c.dtype.bits) {
    case 8:
      inputs.topk_ids = as_bytes<std::uint8_t>(ids);
      break;
    case 16:
      inputs.topk_ids = as_bytes<std::uint16_t>(ids);
      break;
    case 32:
      inputs.topk_ids = as_bytes<std::uint32_t>(ids);
      break;
    default:
      inputs.topk_ids = as_bytes<std::uint64_t>(ids);
  }
  if (c.map != MapKind::kNone) inputs.expert_map = make_map(c);
  return inputs;
}

AlignBlockSizeSizes smallest_sizes(const AlignBlockSizeCase& c) {
  const std::int64_t num_ids = c.num_tokens * c.top_k;
  const std::int64_t num_groups = c.num_experts + (c.filtered_group ? 1 : 0);
  AlignBlockSizeSizes sizes;
  sizes.sorted_token_ids = num_ids + std::min(num_ids, num_groups) * (c.block_size - 1);
  sizes.expert_ids = (sizes.sorted_token_ids + c.block_size - 1) / c.block_size;
  if (c.pad_sorted_ids) sizes.sorted_token_ids = sizes.expert_ids * c.block_size;
  return sizes;
}

CaseArguments make_arguments(const AlignBlockSizeCase& c, std::uint64_t seed) {
  AlignBlockSizeInputs inputs = make_inputs(c, seed);
  const AlignBlockSizeSizes sizes = smallest_sizes(c);
  CaseBuilder<AlignBlockSizeArgs> made("align_block_size");
  AlignBlockSizeArgs& args = made.args();
  args.topk_ids = made.input(std::move(inputs.topk_ids), c.dtype, {c.num_tokens, c.top_k});
  args.block_size = c.block_size;
  args.num_experts = c.num_experts;
  if (inputs.expert_map) args.expert_map = made.input(*inputs.expert_map);
  args.ignore_invalid_experts = c.ignore_invalid_experts;
  args.pad_sorted_ids = c.pad_sorted_ids;
  args.tail_expert = c.tail_expert;
  args.map_tail = c.map_tail;
  args.filtered_group = c.filtered_group;
  args.sorted_token_ids = output(kInt32, {sizes.sorted_token_ids + c.extra_length});
  args.expert_ids = output(kInt32, {sizes.expert_ids + c.extra_length});
  args.num_tokens_post_pad = output(kInt32, {1});
  args.expert_counts = output(kInt32, {c.num_experts});
  args.num_dropped = output(kInt32, {1});
  if (c.statistics) args.statistics = output(kFloat64, {kAlignBlockSizeNumStatistics});
  if (c.validation) args.validation = output(kInt64, {kAlignBlockSizeValidationLength});
  return made.finish();
}

}  // namespace tessera::contract
