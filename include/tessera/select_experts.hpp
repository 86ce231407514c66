// select_experts: chooses each token's experts from the router's logits, and weighs them. This is
// the first step of a Mixture-of-Experts layer.
//
// THE CONTRACT
//
// Let T be the number of tokens, E the number of experts, k the slots per token (top_k), G the
// number of groups (num_expert_group), each of E / G neighbouring experts, and P the number of
// tokens that count (num_valid_tokens clamped to [0, T]; T if it is not given). Write v[e] for the
// float32 value of router_logits[t][e], with -inf in place of a NaN. All arithmetic below is in
// float32, every operation rounded to nearest, ties to even, subnormals kept; fma(a, b, c) is
// rounded once. A comparison takes -0 and +0 for equal.
//
// Elementary functions, for x <= 0 and 0 <= y <= 1:
//
//   exponential(x)  0 if x < -104; else with n = rint(x * 0x1.715476p+0) and
//                   r = fma(n, 0x1.05c610p-29, fma(n, -0x1.62e430p-1, x)):
//                   (p(r) * 2^trunc(n / 2)) * 2^(n - trunc(n / 2)), where p is the Taylor
//                   polynomial of exp of degree 7, with coefficients rounded to float32, by
//                   Horner's rule with fma. It is within 0.92 ulp of exp(x).
//   log1p(y)        with s = y / (2 + y) and q = s * s: fma(p(q) * q, s, 2 * s), where p has the
//                   coefficients 2/3, 2/5 ... 2/17, rounded to float32, by Horner's rule with fma:
//                   within 2 ulp.
//   softplus(v)     max(v, 0) + log1p(exponential(-|v|)).
//
// exponential() reduces its argument as Cody and Waite do (Software Manual for the Elementary
// Functions, 1980, chapter 6). log1p() is the series of 2 artanh(s), as 1 + y = (1 + s) / (1 - s).
//
// Scores of a token that has a v[e] > -inf, where m is the largest v[e]:
//
//   softmax        exponential(v[e] - m) / S, where S is the sum of all exponential(v[e] - m):
//   first
//                  32 sums, of the e with the same remainder by 32 in ascending order, each from +0
//                  on; then sum[i] + sum[i + 16] for i < 16, and so on with 8, 4, 2 and 1. If m is
//                  +inf: 1 / n for the n experts with +inf, and 0 for the others.
//   sigmoid        with x = exponential(-|v[e]|): 1 / (1 + x), or x / (1 + x) if v[e] < 0.
//   sqrt_softplus  sqrt(softplus(v[e])), or exponential(v[e] / 2) if v[e] < -16. If m is +inf: as
//                  for softmax.
//
// All scores of a token without a v[e] > -inf are 0.
//
//  1. choice[e] is v[e] without a correction bias: scores rise with the logits, so that this ranks
//     by the real scores, exactly. With a bias it is score[e] + correction_bias[e], and -inf if
//     v[e] is -inf or the sum a NaN.
//  2. A group's score is its largest choice, or with a bias the sum of its two largest, -inf if
//     that is a NaN; of a group of one expert, its choice. The topk_group groups with the largest
//     scores stay; of equal ones the first.
//  3. topk_ids[t] are the k experts of these groups with the largest choices, in descending order;
//     of equal ones the first. So they are k different ids in [0, E) whatever the logits are.
//  4. w[s] is the score of topk_ids[t][s], without the bias. With `renormalize`, w[s] = w[s] / sum,
//     where sum is w[0] + w[1] + ... in this order, if it is not 0. Then topk_weights[t][s] =
//     w[s] * routed_scaling_factor.
//  5. Tokens from P on have ids -1 and weights +0, and their logits are not read.
//  6. So the op is a pure function of its inputs, to the last bit: on every backend, in every run,
//     on any number of threads and streams; a token's outputs do not depend on the other tokens.
//     On the host a call computes in the default floating-point environment, and leaves the
//     caller's as it was.
//  7. Any values of any input array are safe: nothing is read or written out of bounds, also if
//     they change during the call; the outputs then have unspecified values.
//  8. Bad arguments are refused before anything is written. T = 0 is valid; E and k are at least 1.
//
// The rules `ids` and `weights` of the checker also accept programs with other elementary functions
// and sums: see contract/select_experts_checker.hpp. `exact_bits` asks for the bits above.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output. The paragraphs of
// align_block_size.hpp on contexts and programmatic dependent launch also apply.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

/// How a token's logits become its experts' scores.
enum class Scoring : std::int32_t { kSoftmax, kSigmoid, kSqrtSoftplus };

/// In the order of Scoring.
inline constexpr const char* kScoringNames[] = {"softmax", "sigmoid", "sqrt_softplus"};

struct SelectExpertsArgs {
  // Inputs. All arrays are aligned to their element size, on the context's device.
  TensorView router_logits;     ///< [T, E]; float16, bfloat16 or float32; rows may lie apart
  TensorView correction_bias;   ///< optional float32[E]: added to the scores for the choice alone
  TensorView num_valid_tokens;  ///< optional int32[1]: later tokens are padding

  // Outputs, contiguous. They may not overlap another array of the call.
  TensorView topk_weights;  ///< float32[T, k]
  TensorView topk_ids;      ///< int32[T, k]

  std::int64_t top_k = 0;  ///< 1 ... E, and at most what topk_group groups have
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = false;           ///< divide the weights of a token by their sum
  std::int64_t num_expert_group = 1;  ///< divides E
  std::int64_t topk_group = 1;        ///< groups that stay, 1 ... num_expert_group
  float routed_scaling_factor = 1;    ///< finite
};

namespace select_experts_schema {

enum Symbol : std::int8_t { kNumTokens, kNumExperts, kTopK };
inline constexpr const char* kSymbols[] = {"T", "E", "k"};

using Args = SelectExpertsArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, router_logits)
        .input(kFloats, axes(gives(kNumTokens), gives(kNumExperts)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, correction_bias)
        .optional_input(dtypes::kFloat32, axes(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, num_valid_tokens).optional_input(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, topk_weights)
        .output(dtypes::kFloat32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, topk_ids)
        .output(dtypes::kInt32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, top_k).between(1, kInt32Max).giving(kTopK),
    TESSERA_ARGUMENT(Args, scoring).one_of(kScoringNames),
    TESSERA_ARGUMENT(Args, renormalize),
    TESSERA_ARGUMENT(Args, num_expert_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, topk_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, routed_scaling_factor),
};

}  // namespace select_experts_schema

inline constexpr Schema kSelectExpertsSchema{"select_experts", select_experts_schema::kArguments,
                                             select_experts_schema::kSymbols};

/// Bytes of workspace on the context's device that the call needs: none on a CUDA device. Reads
/// numbers, data types and shapes of `args`, and no array's memory.
TESSERA_API Status select_experts_workspace_bytes(const SelectExpertsArgs& args,
                                                  const Context& context, std::size_t* bytes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status select_experts(const SelectExpertsArgs& args, const Context& context);

}  // namespace tessera
