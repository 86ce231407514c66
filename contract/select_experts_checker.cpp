#include "select_experts_checker.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "float_bits.hpp"
#include "select_experts_arithmetic.hpp"
#include "select_experts_bounds.hpp"

namespace tessera::contract {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// A place in the order of choices: the larger comes first.
struct Place {
  double choice;
  std::int64_t index;

  auto operator<=>(const Place& other) const {
    return std::partial_order(std::pair(choice, -index), std::pair(other.choice, -other.index));
  }
};

constexpr Place kBehindAll{-kInf, std::numeric_limits<std::int64_t>::max()};
constexpr Place kBeforeAll{kInf, -1};

Place earliest(const std::vector<Interval>& choices, std::int64_t index) {
  return {choices[static_cast<std::size_t>(index)].high, index};
}

Place latest(const std::vector<Interval>& choices, std::int64_t index) {
  return {choices[static_cast<std::size_t>(index)].low, index};
}

/// Whether a token's ids may be the first ones of its choices: nothing that comes later has to come
/// earlier.
class Order {
 public:
  Order(const TokenToSelect& token, const std::vector<Interval>& choices)
      : token_(token), choices_(choices), groups_(group_bounds(token, choices)) {}

  bool allows(std::span<const std::int32_t> ids) const {
    Place later = kBehindAll;
    Place last = kBeforeAll;  // the earliest place that every id may have
    for (std::size_t slot = ids.size(); slot-- > 0;) {
      const Place place = earliest(choices_, ids[slot]);
      if (place < later) return false;
      later = std::max(later, latest(choices_, ids[slot]));
      last = std::min(last, place);
    }
    return allows_groups(ids, last);
  }

 private:
  /// Whether groups may stay that hold all ids, and no other expert that has to come before `last`.
  bool allows_groups(std::span<const std::int32_t> ids, Place last) const {
    const auto num_groups = static_cast<std::int64_t>(groups_.size());
    std::vector<bool> is_taken(choices_.size(), false);
    std::vector<bool> is_needed(groups_.size(), false);
    for (const std::int32_t id : ids) {
      is_taken[static_cast<std::size_t>(id)] = true;
      is_needed[static_cast<std::size_t>(id / token_.group_size())] = true;
    }
    std::vector<bool> may_stay(groups_.size(), true);
    for (std::int64_t e = 0; e < token_.num_experts(); ++e) {
      if (!is_taken[static_cast<std::size_t>(e)] && last < latest(choices_, e)) {
        may_stay[static_cast<std::size_t>(e / token_.group_size())] = false;
      }
    }
    // The best group that goes comes no earlier than `best_gone`: groups that may not stay go, and
    // so do those beyond the number that stays. Of the others, those that have to come before it
    // stay, and the rest may, if they may come before it.
    Place best_gone = kBehindAll;
    std::vector<Place> others;
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const Place place = latest(groups_, g);
      if (!may_stay[static_cast<std::size_t>(g)]) best_gone = std::max(best_gone, place);
      if (!is_needed[static_cast<std::size_t>(g)]) others.push_back(place);
    }
    const std::int64_t num_stay = token_.args->topk_group;
    const std::int64_t num_free = num_stay - (num_groups - std::ssize(others));
    if (num_free < 0) return false;
    if (num_free < std::ssize(others)) {
      std::nth_element(others.begin(), others.begin() + num_free, others.end(), std::greater<>());
      best_gone = std::max(best_gone, others[static_cast<std::size_t>(num_free)]);
    }
    std::int64_t num_may_stay = 0;
    for (std::int64_t g = 0; g < num_groups; ++g) {
      const auto at = static_cast<std::size_t>(g);
      const bool stays = may_stay[at] && earliest(groups_, g) >= best_gone;
      if (is_needed[at] && !stays) return false;
      if (stays) ++num_may_stay;
    }
    return num_may_stay >= num_stay;
  }

  const TokenToSelect& token_;
  const std::vector<Interval>& choices_;
  const std::vector<Interval> groups_;
};

/// "0.5 (0x3f000000)"
std::string with_bits(float value) {
  std::array<char, 9> text{};
  std::snprintf(text.data(), text.size(), "%08x", std::bit_cast<std::uint32_t>(value));
  return Number(double{value}).text() + " (0x" + text.data() + ")";
}

bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const SelectExpertsArgs& args)
      : args_(args),
        num_tokens_(args.router_logits.shape[0]),
        num_experts_(args.router_logits.shape[1]) {}

  std::vector<Violation> check_inputs() {
    check_arrays();
    if (none()) check_numbers();
    return in_order(kSelectExpertsRules);
  }

  std::vector<Violation> run() {
    check_inputs();
    if (none()) {
      check_output("topk_weights", args_.topk_weights, kFloat32);
      check_output("topk_ids", args_.topk_ids, kInt32);
    }
    if (none()) check_tokens();
    return in_order(kSelectExpertsRules);
  }

 private:
  void check_arrays() {
    const TensorView& logits = args_.router_logits;
    if (!is_float(logits.dtype) || !has_rows(logits, 2) || num_experts_ < 1) {
      invalid_input("router_logits",
                    "[T, E] float16, bfloat16 or float32 values in contiguous rows, E at least 1",
                    describe_axes(logits));
      return;
    }
    const TensorView& bias = args_.correction_bias;
    if (bias.given() &&
        (!same(bias.dtype, kFloat32) || !has_rows(bias, 1) || bias.shape[0] != num_experts_)) {
      invalid_input("correction_bias", "[E] contiguous float32 values", describe_axes(bias));
    }
    const TensorView& valid = args_.num_valid_tokens;
    if (valid.given() &&
        (!same(valid.dtype, kInt32) || valid.num_elements != 1 || !readable(valid))) {
      invalid_input("num_valid_tokens", "one int32", describe(valid));
    }
  }

  void check_numbers() {
    const auto expect = [&](bool is_good, const char* argument, const char* expected,
                            Number found) {
      if (!is_good) invalid_input(argument, expected, found.text());
    };
    const std::int64_t num_groups = args_.num_expert_group;
    expect(num_groups >= 1 && num_experts_ % num_groups == 0, "num_expert_group",
           "a divisor of the number of experts", num_groups);
    if (!none()) return;
    expect(args_.topk_group >= 1 && args_.topk_group <= num_groups, "topk_group",
           "1 ... num_expert_group", args_.topk_group);
    if (!none()) return;
    expect(args_.top_k >= 1 && args_.top_k <= num_experts_ / num_groups * args_.topk_group, "top_k",
           "1 ... the number of experts in topk_group groups", args_.top_k);
    const auto scoring = static_cast<std::int64_t>(args_.scoring);
    expect(scoring >= 0 && scoring < std::ssize(kScoringNames), "scoring", "one of Scoring",
           scoring);
    expect(std::isfinite(args_.routed_scaling_factor), "routed_scaling_factor", "a finite number",
           double{args_.routed_scaling_factor});
  }

  void check_output(const char* name, const TensorView& view, DLDataType dtype) {
    check_rows(name, view, dtype, num_tokens_, args_.top_k);
    if (!none() || has_contiguous_axes(view, 2)) return;
    add({"output_sizes", name, 0, num_tokens_ * args_.top_k, view.num_elements,
         std::string("output_sizes: ") + name + ": expected a contiguous array, found " +
             describe_axes(view)});
  }

  void check_tokens() {
    const DefaultFloatEnvironment environment;
    TokensToSelect tokens(args_);
    const std::int64_t num_valid = tokens.num_valid();
    for (std::int64_t t = 0; t < num_valid; ++t) check_token(t, tokens.read(t));
    for (std::int64_t i = num_valid * args_.top_k; i < num_tokens_ * args_.top_k; ++i) {
      check_padding(i);
    }
  }

  void check_padding(std::int64_t i) {
    if (broken("padding")) return;
    if (id_at(i) != -1) report("padding", "topk_ids", i, -1, id_at(i), "-1", text_of_id(i));
    if (!same_bits(weight_at(i), 0)) {
      report("padding", "topk_weights", i, 0.0, double{weight_at(i)}, with_bits(0),
             with_bits(weight_at(i)));
    }
  }

  void check_token(std::int64_t t, const TokenToSelect& token) {
    const SelectedExperts asked = select_by_contract(token);
    const std::int64_t begin = t * args_.top_k;
    const auto ids =
        int32s(args_.topk_ids).subspan(static_cast<std::size_t>(begin), asked.ids.size());
    if (check_valid_ids(begin, ids)) {
      const std::vector<Interval> scores = score_bounds(token);
      if (!Order(token, choice_bounds(token, scores)).allows(ids)) {
        const auto first = std::mismatch(ids.begin(), ids.end(), asked.ids.begin());
        const auto slot = first.first == ids.end() ? 0 : first.first - ids.begin();
        report_id("ids", begin + slot, asked.ids[static_cast<std::size_t>(slot)]);
      }
      check_weights(begin, weight_bounds(token, scores, ids));
    }
    for (std::int64_t slot = 0; slot < args_.top_k && !broken("exact_bits"); ++slot) {
      const auto at = static_cast<std::size_t>(slot);
      if (ids[at] != asked.ids[at]) report_id("exact_bits", begin + slot, asked.ids[at]);
      const float found = weight_at(begin + slot);
      if (same_bits(found, asked.weights[at])) continue;
      report("exact_bits", "topk_weights", begin + slot, double{asked.weights[at]}, double{found},
             with_bits(asked.weights[at]), with_bits(found));
    }
  }

  bool check_valid_ids(std::int64_t begin, std::span<const std::int32_t> ids) {
    std::vector<bool> seen(static_cast<std::size_t>(num_experts_), false);
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      const std::int64_t id = ids[slot];
      const bool in_range = id >= 0 && id < num_experts_;
      if (in_range && !seen[static_cast<std::size_t>(id)]) {
        seen[static_cast<std::size_t>(id)] = true;
        continue;
      }
      const auto unseen = std::find(seen.begin(), seen.end(), false) - seen.begin();
      const auto at = begin + static_cast<std::int64_t>(slot);
      report("valid_ids", "topk_ids", at, unseen, id,
             in_range ? "an id that no earlier slot has"
                      : "an id in [0, " + std::to_string(num_experts_) + ")",
             std::to_string(id));
      return false;
    }
    return true;
  }

  void check_weights(std::int64_t begin, const std::vector<Interval>& bounds) {
    for (std::size_t slot = 0; slot < bounds.size() && !broken("weights"); ++slot) {
      const std::int64_t at = begin + static_cast<std::int64_t>(slot);
      const double found = weight_at(at);
      const auto [low, high] = bounds[slot];
      if (bounds[slot].contains(found)) continue;
      const std::string text = Number(low).text();
      report("weights", "topk_weights", at, low, found,
             low < high ? "a value in [" + text + ", " + Number(high).text() + "]" : text,
             Number(found).text());
    }
  }

  std::int32_t id_at(std::int64_t i) const {
    return int32s(args_.topk_ids)[static_cast<std::size_t>(i)];
  }
  std::string text_of_id(std::int64_t i) const { return std::to_string(id_at(i)); }
  float weight_at(std::int64_t i) const {
    return static_cast<const float*>(args_.topk_weights.data)[i];
  }

  void report_id(const char* rule, std::int64_t i, std::int64_t expected) {
    report(rule, "topk_ids", i, expected, id_at(i), std::to_string(expected), text_of_id(i));
  }

  void report(const std::string& rule, const std::string& array, std::int64_t i, Number expected,
              Number found, const std::string& expected_text, const std::string& found_text) {
    add({rule, array, i, expected, found,
         rule + ": " + array + "[" + std::to_string(i / args_.top_k) + ", " +
             std::to_string(i % args_.top_k) + "]: expected " + expected_text + ", found " +
             found_text});
  }

  const SelectExpertsArgs& args_;
  const std::int64_t num_tokens_;
  const std::int64_t num_experts_;
};

}  // namespace

std::vector<Violation> check_select_experts(const SelectExpertsArgs& args) {
  return Checker(args).run();
}

std::vector<Violation> check_inputs_of_select_experts(const SelectExpertsArgs& args) {
  return Checker(args).check_inputs();
}

}  // namespace tessera::contract
