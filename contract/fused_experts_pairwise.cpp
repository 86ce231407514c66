// Cases of fused_experts in which each two values of different properties meet at least once.
#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <optional>

#include "fused_experts_cases.hpp"

namespace tessera::contract {
namespace {

using Case = FusedExpertsCase;

constexpr std::int64_t kExperts[] = {1, 6, 8, 60, 64, 128, 160, 257};
constexpr std::int64_t kTopK[] = {1, 2, 4, 6, 8, 10};
constexpr std::int64_t kIntermediate[] = {16, 80, 192, 320, 511, 704, 768, 1408, 2048};
constexpr std::int64_t kHidden[] = {64, 320, 512, 2048, 2880, 7168};
constexpr std::int64_t kTokens[] = {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 250, 1000};
// The table begins with the cheapest value of each property: a narrow data type, no gate.
constexpr FloatFormat kFormats[] = {kBfloat16Format, kFloat16Format, kFloat32Format};
constexpr Activation kActivations[] = {
    Activation::kSiluNoMul,  Activation::kGeluNoMul, Activation::kGeluTanhNoMul,
    Activation::kRelu2NoMul, Activation::kSilu,      Activation::kGelu,
    Activation::kGeluTanh,   Activation::kSwigluoai, Activation::kSwigluoaiUninterleave};
constexpr ExpertValues kValues[] = {ExpertValues::kExact, ExpertValues::kOrdinary};
constexpr ExpertRouting kRoutings[] = {ExpertRouting::kUniform, ExpertRouting::kHot,
                                       ExpertRouting::kFew, ExpertRouting::kMixed,
                                       ExpertRouting::kDuplicates};

enum class Layout { kContiguous, kRowsApart, kTransposed, kTransposedApart };
enum class Rest { kPlain, kBiases, kExpertMap, kBiasesAndExpertMap };

constexpr std::int64_t kMaxWeightBytes = std::int64_t{256} << 20;
/// Bounds the time of a case.
constexpr std::int64_t kMaxMultiplyAdds = 1'000'000'000;

/// Numbers of levels of each property.
enum Property : std::size_t {
  kOfExperts,
  kOfTopK,
  kOfIntermediate,
  kOfHidden,
  kOfTokens,
  kOfFormat,
  kOfActivation,
  kOfValues,
  kOfRouting,
  kOfLayout,
  kOfRest,
  kNumProperties
};
constexpr std::array<int, kNumProperties> kNumLevels = {std::size(kExperts),
                                                        std::size(kTopK),
                                                        std::size(kIntermediate),
                                                        std::size(kHidden),
                                                        std::size(kTokens),
                                                        std::size(kFormats),
                                                        std::size(kActivations),
                                                        std::size(kValues),
                                                        std::size(kRoutings),
                                                        4,
                                                        4};

/// A level of each property; -1: not chosen yet.
using Levels = std::array<int, kNumProperties>;

/// Whether the limits leave room, if what is not chosen gets its smallest level.
bool is_feasible(const Levels& levels) {
  const auto at = [&](Property property) {
    return static_cast<std::size_t>(std::max(levels[property], 0));
  };
  const std::int64_t rows =
      (has_gate(kActivations[at(kOfActivation)]) ? 3 : 2) * kIntermediate[at(kOfIntermediate)];
  const std::int64_t per_expert = rows * kHidden[at(kOfHidden)];
  const std::int64_t bytes = kFormats[at(kOfFormat)].bits / 8;
  return kExperts[at(kOfExperts)] * per_expert * bytes <= kMaxWeightBytes &&
         kTokens[at(kOfTokens)] * kTopK[at(kOfTopK)] * per_expert <= kMaxMultiplyAdds;
}

/// Which pairs of levels no case has yet.
class Uncovered {
 public:
  Uncovered() {
    int first = 0;
    for (std::size_t p = 0; p < kNumProperties; ++p) {
      first_[p] = first;
      first += kNumLevels[p];
    }
    pairs_.resize(static_cast<std::size_t>(first) * static_cast<std::size_t>(first));
    for_each_pair([&](std::size_t p, int i, std::size_t q, int j) {
      Levels levels;
      levels.fill(-1);
      levels[p] = i;
      levels[q] = j;
      pairs_[index(p, i, q, j)] = is_feasible(levels);
      return false;
    });
  }

  bool has(std::size_t p, int i, std::size_t q, int j) const {
    return p < q ? pairs_[index(p, i, q, j)] : pairs_[index(q, j, p, i)];
  }

  /// The first pair, as the only levels chosen.
  std::optional<Levels> first() const {
    Levels levels;
    levels.fill(-1);
    const bool found = for_each_pair([&](std::size_t p, int i, std::size_t q, int j) {
      if (!has(p, i, q, j)) return false;
      levels[p] = i;
      levels[q] = j;
      return true;
    });
    return found ? std::optional(levels) : std::nullopt;
  }

  void cover(const Levels& levels) {
    for (std::size_t p = 0; p < kNumProperties; ++p) {
      for (std::size_t q = p + 1; q < kNumProperties; ++q) {
        pairs_[index(p, levels[p], q, levels[q])] = false;
      }
    }
  }

 private:
  /// Until `visit` returns true; returns whether it did.
  template <typename Visit>
  static bool for_each_pair(const Visit& visit) {
    for (std::size_t p = 0; p < kNumProperties; ++p) {
      for (std::size_t q = p + 1; q < kNumProperties; ++q) {
        for (int i = 0; i < kNumLevels[p]; ++i) {
          for (int j = 0; j < kNumLevels[q]; ++j) {
            if (visit(p, i, q, j)) return true;
          }
        }
      }
    }
    return false;
  }

  std::size_t index(std::size_t p, int i, std::size_t q, int j) const {
    const int num_levels = first_.back() + kNumLevels.back();
    const auto width = static_cast<std::size_t>(num_levels);
    const int row = first_[p] + i;
    const int column = first_[q] + j;
    return static_cast<std::size_t>(row) * width + static_cast<std::size_t>(column);
  }

  std::array<int, kNumProperties> first_{};
  std::vector<bool> pairs_;
};

/// Chooses for each property the level that covers the most pairs with those chosen already. Among
/// equals `turn` decides, so that cases differ in what no pair asks for.
void complete(Levels* levels, const Uncovered& uncovered, int turn) {
  for (std::size_t p = 0; p < kNumProperties; ++p) {
    if ((*levels)[p] >= 0) continue;
    int best = 0;
    int most = -1;
    for (int i = 0; i < kNumLevels[p]; ++i) {
      const int level = (i + turn) % kNumLevels[p];
      Levels tried = *levels;
      tried[p] = level;
      if (!is_feasible(tried)) continue;
      int covered = 0;
      for (std::size_t q = 0; q < kNumProperties; ++q) {
        if (q != p && tried[q] >= 0 && uncovered.has(p, level, q, tried[q])) ++covered;
      }
      if (covered > most) {
        most = covered;
        best = level;
      }
    }
    (*levels)[p] = best;
  }
}

Case case_of(const Levels& levels, int number) {
  const auto at = [&](Property property) { return static_cast<std::size_t>(levels[property]); };
  const auto layout = static_cast<Layout>(levels[kOfLayout]);
  const auto rest = static_cast<Rest>(levels[kOfRest]);
  Case c;
  c.num_experts = kExperts[at(kOfExperts)];
  c.top_k = kTopK[at(kOfTopK)];
  c.intermediate_size = kIntermediate[at(kOfIntermediate)];
  c.hidden_size = kHidden[at(kOfHidden)];
  c.num_tokens = kTokens[at(kOfTokens)];
  c.format = kFormats[at(kOfFormat)];
  c.activation = kActivations[at(kOfActivation)];
  c.values = kValues[at(kOfValues)];
  c.routing = kRoutings[at(kOfRouting)];
  c.transposed = layout == Layout::kTransposed || layout == Layout::kTransposedApart;
  c.gap = layout == Layout::kRowsApart || layout == Layout::kTransposedApart ? 8 : 0;
  c.w13_bias = c.w2_bias = rest == Rest::kBiases || rest == Rest::kBiasesAndExpertMap;
  if (rest == Rest::kExpertMap || rest == Rest::kBiasesAndExpertMap) {
    c.num_global_experts = 2 * c.num_experts;
  }
  c.router_format = kFormats[static_cast<std::size_t>(number) % std::size(kFormats)];
  c.int64_ids = number % 2 == 1;
  c.batch_invariant = number % 4 == 3;
  c.weight_on_input = c.top_k == 1 && number % 3 == 0;
  if (is_swigluoai(c.activation) && number % 3 == 0) {
    c.swiglu_alpha = 1.25F;
    c.swiglu_beta = 0.5F;
    c.swiglu_limit = 2;
  }
  c.name = "pairwise_" + std::to_string(number) + "_T" + std::to_string(c.num_tokens) + "_k" +
           std::to_string(c.top_k) + "_E" + std::to_string(c.num_experts) + "_H" +
           std::to_string(c.hidden_size) + "_F" + std::to_string(c.intermediate_size) + "_" +
           kActivationNames[static_cast<std::size_t>(c.activation)];
  return c;
}

}  // namespace

const std::vector<FusedExpertsCase>& fused_experts_pairwise_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> made;
    Uncovered uncovered;
    while (auto levels = uncovered.first()) {
      const auto number = static_cast<int>(made.size());
      complete(&*levels, uncovered, number);
      uncovered.cover(*levels);
      made.push_back(case_of(*levels, number));
    }
    return made;
  }();
  return cases;
}

}  // namespace tessera::contract
