// The tables of cases that drive the tests of fused_experts, and the generator that turns a case
// into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "case_arguments.hpp"
#include "float_bits.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::contract {

/// Which experts the pairs of a case have.
enum class ExpertRouting {
  kUniform,     ///< any, a token's different if there are enough
  kHot,         ///< mostly one
  kFew,         ///< three at most, so that others have no pair
  kNone,        ///< none: all ids are -1
  kMixed,       ///< any; -1, and ids beyond the last expert and beyond 32 bits, among them
  kDuplicates,  ///< each token's are all the same
};
inline constexpr int kNumExpertRoutings = 6;

/// The kind of numbers in a case.
enum class ExpertValues {
  kOrdinary,    ///< as in a model: all values of about the same order
  kExact,       ///< a few small integers and powers of two, whose sums float32 holds
  kCancelling,  ///< each product of the first sums is nearly the opposite of the one before
  kLarge,       ///< the activation's values are near the largest of the data type
  kSubnormal,   ///< hidden states are subnormal or nearly so
  kZero,        ///< hidden states are 0
  kSpecial,     ///< ordinary ones, and a NaN or an infinity here and there
};
inline constexpr int kNumExpertValues = 7;

/// The scales of weights in float8_e4m3fn.
enum class ExpertScales {
  kNoScales,  ///< weights have the case's format
  kPerExpert,
  kPerRow,
  kBlocks,
};

/// The scales of hidden states and of the intermediate, where weights have scales.
enum class HiddenScales {
  kComputed,
  kStatic,     ///< given for the quantisation of both; not with blocks
  kFp8Rows,    ///< x in float8_e4m3fn, with scales of its rows or groups
  kFp8Single,  ///< x in float8_e4m3fn, with one scale; not with blocks
  kFp8Static,  ///< the same, with a scale for the intermediate
};

/// Weights of experts that no pair uses, rows of x and weights of pairs that do not count, and gaps
/// between rows are NaN, and so are scales of either.
struct FusedExpertsCase {
  std::string name = {};  ///< unique
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 1;
  std::int64_t num_experts = 1;
  std::int64_t hidden_size = 1;
  std::int64_t intermediate_size = 1;
  Activation activation = Activation::kSilu;
  FloatFormat format = kBfloat16Format;        ///< of all floats but what the next and `scales` say
  FloatFormat router_format = kFloat32Format;  ///< of topk_weights
  ExpertValues values = ExpertValues::kOrdinary;
  ExpertRouting routing = ExpertRouting::kUniform;
  bool int64_ids = false;
  std::int64_t num_global_experts = 0;  ///< entries of an expert_map; 0: there is none
  bool w13_bias = false;
  bool w2_bias = false;
  bool transposed = false;  ///< w13 and w2
  std::int64_t gap = 0;     ///< number of elements between the rows of each array but expert_map
  bool weight_on_input = false;
  bool batch_invariant = false;
  float swiglu_alpha = kNotGiven;
  float swiglu_beta = kNotGiven;
  float swiglu_limit = kNotGiven;
  ExpertScales scales = ExpertScales::kNoScales;
  HiddenScales hidden = HiddenScales::kComputed;
  bool use_ue8m0 = false;
  bool zero_groups = false;  ///< every other 128 hidden states are 0
  bool is_tiny = false;      ///< all hidden states are below 1e-10
  bool has_ties = false;     ///< hidden states lie half a step of float8_e4m3fn from a value
  /// The last element of the intermediate is some 200 times as large as the others; with scales of
  /// rows.
  bool has_outlier = false;
};

/// The table, written by hand and small enough to read and to run everywhere.
std::span<const FusedExpertsCase> fused_experts_cases();

/// Cases with the sizes of models in which each two values of different properties meet, of at most
/// 256 MiB of weights. For a test of its own.
const std::vector<FusedExpertsCase>& fused_experts_pairwise_cases();

/// A random case of at most `max_elements` in each array. A pure function of its arguments, on
/// every platform.
FusedExpertsCase random_fused_experts_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const FusedExpertsCase& c, std::uint64_t seed);

/// The same with these ids, [T, k] in row-major order, instead of those that `routing` draws.
CaseArguments make_arguments(const FusedExpertsCase& c, const std::vector<std::int64_t>& ids,
                             std::uint64_t seed);

}  // namespace tessera::contract
