// fused_experts: the experts of a Mixture-of-Experts layer, from hidden states and the router's
// choice to the weighted sum over each token's experts.
//
// THE CONTRACT
//
// Let T be the number of tokens, k the slots per token (top_k), H the hidden size, F the
// intermediate size, E the experts whose weights are given, and N the rows of w13 per expert: 2 F
// if the activation multiplies a gate by an up projection, else F. A pair (t, s) is slot s of token
// t. Its id is topk_ids[t][s]; its expert e is the id itself, or expert_map[id] if a map of length
// G is given. The pair counts if 0 <= id (< G) and 0 <= e < E; all other pairs add nothing,
// whatever their weight. For a pair that counts, with w = topk_weights[t][s]:
//
//   g[n] = v * sum over h of w13[e][n][h] * x[t][h] + w13_bias[e][n]
//   a[f] = activation(g)[f]                             see Activation
//   y[h] = sum over f of w2[e][h][f] * round(a[f]) + w2_bias[e][h]
//   p[h] = c * y[h]
//
// where (v, c) is (w, 1) with apply_router_weight_on_input, else (1, w), round() rounds to the data
// type of x, to nearest, ties to even, and a bias that is not given is 0. Then
//
//   output[t][h] = round(sum over the slots s that count, in ascending order, of p[h]).
//
// All arrays of floats but topk_weights have the data type of x, unless weights are in fp8 (below).
// An implementation may add round(p[h]) in place of p[h]. On CUDA devices all do, which halves the
// traffic between the second product and the sum; the CPU keeps p in float32.
//
//  1. Each element of the output lies within the error bound below.
//  2. A token of which no pair counts gets +0 everywhere.
//  3. Same call, same bits: in every run, and on any number of threads. On the CPU and on CUDA
//     devices a token's bits also do not depend on the other tokens of the call, nor on its place
//     among them; `batch_invariant` asks for that wherever the op runs.
//  4. A row of x that no pair uses, the weights of an expert that no pair uses, the scales of
//     either, elements between rows, and the router's weight of a pair that does not count may be
//     NaN or infinite: they reach no output. A NaN that a counting pair multiplies makes the
//     elements NaN that depend on it, whatever it is multiplied by: of w2, its column; else all
//     elements of the token.
//  5. Elements between the rows of an output whose rows lie apart are not written.
//  6. Any ids are safe: nothing is read or written out of bounds, also if another thread or stream
//     changes the contents of inputs during the call; the output then has unspecified values.
//  7. Bad arguments are refused before anything is written. T = 0 is valid; k, H, F and E are at
//     least 1.
//
// WEIGHTS IN FP8 are float8_e4m3fn, each element with a scale in float32, by which it is
// multiplied:
//
//   g[n] = v * sum over h of S13[n][h] * w13[e][n][h] * X[h] * q[t][h] + w13_bias[e][n]
//   y[h] = sum over f of S2[h][f] * w2[e][h][f] * A[f] * b[f] + w2_bias[e][h]
//
// where q and b are x and a in float8_e4m3fn, with the scales X and A. With blocks(n) = ceil(n /
// 128), scales are given for
//
//                           w13_scale               w2_scale
//   each expert             [E]                     [E]
//   each row                [E, N, 1]               [E, H, 1]
//   blocks of 128 x 128     [E, R, blocks(H)]       [E, blocks(H), blocks(F)]
//
// of which w13 and w2 have the same. Block (i, j) has the rows from 128 i on and the columns from
// 128 j on; the last ones hold what is left. Where gate rows and then up rows follow each other,
// each of these halves has blocks of its own: R = 2 blocks(F), and scale row blocks(F) + i is that
// of up rows from F + 128 i on. Else R = blocks(N). The shapes of both say which scales are given:
// two lines have the same ones only if H = F = 1, and then mean the same.
//
//  a. x in float16, bfloat16 or float32 becomes (q, X) as by quantize_fp8, to the bit: with scales
//     for blocks in groups of 128 of a row (Fp8Group::k1x128); else with one scale per token
//     (kRow), or, where x_scale [1] is given, with that.
//  b. x in float8_e4m3fn is q, and x_scale is X: with scales for blocks of shape [T, blocks(H)],
//     else [T, 1] or [1]. Output and biases then have any one of the three types.
//  c. a, in float32, becomes (b, A) likewise, F elements as a row of its own; where
//     intermediate_scale [1] is given, with that. With x of rule a, x_scale and intermediate_scale
//     are both given or neither; without x_scale [1] there is no intermediate_scale.
//  d. use_ue8m0 makes computed scales powers of two, as in quantize_fp8.
//  e. A NaN in a scale counts as a NaN in each element that it scales. In scales of x and a NaNs
//     and infinities of their elements do not count; infinities become +-448.
//
// THE ERROR BOUND allows products and sums in float32, in any order. Let u = 2^-24 be its unit
// roundoff, gamma(n) = n u / (1 - n u), and tiny = 2^-126, the smallest normal number: arithmetic
// may count subnormal numbers as zeros. With d(z) for the largest error of a value z:
//
//   g[n] as above in real numbers,
//     d(g[n]) = gamma(H + 3) (|v| sum |w13 x| + |w13_bias|)
//               + 4 tiny max(1, |v|) sum (1 + |w13|) (1 + |x|)
//   a[f]: from the smallest to the largest activation(g')[f] over |g'[n] - g[n]| <= d(g[n]), and
//     on both sides the evaluation error (see Activation). Both ends rounded to the data type of x
//     enclose round(a[f]); let m[f] be the midpoint between them, and r[f] the distance from it.
//   y[h] = sum w2 m + w2_bias in real numbers,
//     d(y[h]) = sum |w2| r + gamma(F + 1) (sum |w2| (|m| + r) + |w2_bias|)
//               + 4 tiny sum (1 + |w2|) (1 + |m| + r)
//   p[h] = c y in real numbers,
//     d(p[h]) = |c| d(y) + gamma(1) |c| (|y| + d(y)) + 4 tiny (1 + |c|) (1 + |y| + d(y)).
//     p - d(p), p + d(p) and, unless x is float32, both rounded to the data type of x enclose what
//     is added; let p'[h] be the midpoint between the smallest and the largest of them, and q[h]
//     the distance from it.
//   s = sum p' in real numbers,
//     d(s) = sum q + gamma(k) sum (|p'| + q) + 8 tiny sum (1 + |p'| + q)
//
// and the output lies between round(s - d(s)) and round(s + d(s)). gamma(n) bounds the factors that
// n roundings multiply a term by, in any order of the sum, with fused products or without: N. J.
// Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition (2002), lemma 3.1 and section
// 3.1. The 3 of H + 3 are the product with v, its rounding before the products if x is scaled
// instead, and the bias. 4 tiny covers a term's factors, its product and its sum.
//
// Sums that float32 holds exactly must be exact, and so must p, a sum of one term: d is 0 if the
// values that enter have no error, none of them is subnormal, v is a power of two, all terms (the
// bias is one) are integer multiples of a power of two b >= tiny, and their magnitudes sum to
// 2^24 b or less. A p' has no error if q is 0: where x holds p as well.
//
// With weights in fp8, q and X have one right value. Let K be H or F, and w13, x, w2 stand for the
// products of elements and scales, in real numbers; the bound is the same but for this:
//
//   d(g[n]) = gamma(H + 4) (|v| sum |w13 x| + |w13_bias|) + alpha |v| sum |w13 x| + 8 tiny M,
//     M = 2^18 K (1 + |v|) (1 + max |S13|) (1 + max |X|)
//   a[f]: float32(), not round(), of both ends encloses a[f]. Let l[f] and h[f] be the smallest and
//     the largest |a[f]| between them. Each scale A lies between the scales that quantize_fp8 has
//     for an amax of max l[f] and of max h[f] of its group, and is a power of two with use_ue8m0,
//     or it is intermediate_scale. So two factors enclose A b[f]: the ends of A, and the smallest
//     and the largest e4m3(float32(a / A)) over the ends of a[f] and of A. With use_ue8m0 each
//     power of two that A may be gives such an interval. Hence a whole step of float8_e4m3fn counts
//     where a / A may lie on either side of a tie, and none elsewhere. m[f] and r[f] are the
//     midpoint and the distance from it of what encloses A b[f]. What must be a NaN is left out of
//     its group's amax; one a[f] without a bound leaves its group without one.
//   d(y[h]) = sum |w2| r + gamma(F + 4) (sum |w2| (|m| + r) + |w2_bias|) + alpha sum |w2| (|m| + r)
//               + 8 tiny M, with v = 1, S2 and A in M
//   p[h] and s have the bounds above. An implementation rounds p to the data type of the output,
//   which x in float8_e4m3fn does not have.
//
// alpha is 0 on the host, and kFp8AccumulationError on CUDA devices. Beside the H - 1 sums of
// terms, H + 4 counts the products of an element with its scale, on either side, their product,
// that with v, and the bias. M / K is the largest product of factors of a term, of which elements
// have at most 448 each. Sums that float32 holds exactly must be exact where alpha is 0, with b >=
// tiny M / K. There is no bound where M may overflow float32, a scale is infinite, or
// intermediate_scale is 0.
//
// There is no bound where one of these values is infinite or may overflow float32, or round(a) or
// round(p) may overflow the data type of x. A NaN in the bits of the output is any NaN.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output and no workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

/// What happens between the two products. sigmoid(z) = 1 / (1 + exp(-z)); Phi is the normal
/// distribution's. Names are vLLM's. The error bound allows each an evaluation error of
/// 8 u (|z| |m| + |a|) + 4 tiny (1 + |z|) (1 + |m|), where a is its value and m is the up
/// projection or 1. For kRelu2NoMul it is u |a| + tiny, and none if z has no error and float32
/// holds its square; for the others none if z m = 0.
enum class Activation : std::int32_t {
  // N = 2 F: gate z = g[f], up m = g[F + f].
  kSilu,      ///< z sigmoid(z) m
  kGelu,      ///< z Phi(z) m, Phi(z) = (1 + erf(z / sqrt(2))) / 2
  kGeluTanh,  ///< z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) m
  /// gate z = min(g[2 f], limit), up m = clamp(g[2 f + 1], -limit, limit) + beta:
  /// z sigmoid(alpha z) m, with rows of gate and up interleaved, as gpt-oss stores them.
  kSwigluoai,
  kSwigluoaiUninterleave,  ///< the same, with z from g[f] and m from g[F + f]
  // N = F: z = g[f].
  kSiluNoMul,      ///< z sigmoid(z)
  kGeluNoMul,      ///< z Phi(z)
  kGeluTanhNoMul,  ///< as kGeluTanh
  kRelu2NoMul,     ///< max(z, 0)^2
};

/// In the order of Activation.
inline constexpr const char* kActivationNames[] = {
    "silu",        "gelu",        "gelu_tanh",        "swigluoai",   "swigluoai_uninterleave",
    "silu_no_mul", "gelu_no_mul", "gelu_tanh_no_mul", "relu2_no_mul"};

/// Whether the activation multiplies a gate by an up projection: then N = 2 F.
constexpr bool has_gate(Activation activation) { return activation < Activation::kSiluNoMul; }

/// Whether alpha, beta and limit apply.
constexpr bool is_swigluoai(Activation activation) {
  return activation == Activation::kSwigluoai || activation == Activation::kSwigluoaiUninterleave;
}

/// Stands for "not given": the defaults are gpt-oss's.
inline constexpr float kNotGiven = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kDefaultSwigluAlpha = 1.702F;
inline constexpr float kDefaultSwigluBeta = 1.0F;
inline constexpr float kDefaultSwigluLimit = 7.0F;

/// The largest error of tensor cores in a sum of products of float8_e4m3fn, as a share of the sum
/// of their magnitudes over 128 terms, after which implementations add to a float32. On compute
/// capability 9.0 wgmma is reported to align products to the largest of them, and to keep 13 bits
/// below its first: 127 products that are just too small for that make 127 * 2^-13.
/// tests/cuda/check_wgmma_fp8 found at most 0.92 of it on an H200, and 0.063 with random numbers.
inline constexpr double kFp8AccumulationError = 0x1p-6;

struct FusedExpertsArgs {
  // Inputs, on the context's device, aligned to their element size. The last axis of an array whose
  // rows may lie apart is contiguous, and each other axis steps over what the next ones hold.
  // Arrays of weights may also be transposed: contiguous along the axis before the last.
  TensorView x;             ///< [T, H]; float16, bfloat16, float32 or, with w13, float8_e4m3fn;
                            ///< rows may lie apart
  TensorView w13;           ///< [E, N, H]; of x's data type, or float8_e4m3fn; rows apart or
                            ///< transposed
  TensorView w2;            ///< [E, H, F], of w13's data type; rows apart or transposed
  TensorView topk_weights;  ///< [T, k]; float16, bfloat16 or float32; rows may lie apart
  TensorView topk_ids;      ///< [T, k]; int32 or int64; rows may lie apart
  TensorView expert_map;    ///< optional int32[G]: global expert -> row of w13, else remote
  TensorView w13_bias;      ///< optional [E, N], of the output's data type; rows may lie apart
  TensorView w2_bias;       ///< optional [E, H], of the output's data type; rows may lie apart
  // With weights in float8_e4m3fn alone; contiguous float32.
  TensorView w13_scale;           ///< then required; shapes: above
  TensorView w2_scale;            ///< then required; shapes: above
  TensorView x_scale;             ///< required if x is float8_e4m3fn, else optional
  TensorView intermediate_scale;  ///< optional [1]

  // May not overlap another array of the call.
  TensorView output;  ///< [T, H]; of x's data type, or, if that is float8_e4m3fn, float16, bfloat16
                      ///< or float32; rows may lie apart

  Activation activation = Activation::kSilu;
  bool apply_router_weight_on_input = false;  ///< needs k = 1
  bool batch_invariant = false;
  // Of kSwigluoai and kSwigluoaiUninterleave alone: finite, and the limit positive (or infinite:
  // no limit).
  float swiglu_alpha = kNotGiven;
  float swiglu_beta = kNotGiven;
  float swiglu_limit = kNotGiven;
  bool use_ue8m0 = false;  ///< with weights in float8_e4m3fn, where a scale is computed
};

namespace fused_experts_schema {

enum Symbol : std::int8_t {
  kNumTokens,
  kHiddenSize,
  kNumExperts,
  kNumRows,
  kIntermediateSize,
  kTopK,
  kNumGlobalExperts,
  kNumW13Scales,
  kNumW2Scales,
  kNumXScales
};
inline constexpr const char* kSymbols[] = {
    "T", "H", "E", "N", "F", "k", "G", "num_w13_scales", "num_w2_scales", "num_x_scales"};

using Args = FusedExpertsArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;
inline constexpr DtypeSet kFloatsOrFp8 = kFloats | dtypes::kFloat8E4m3;
inline constexpr DtypeSet kIds = dtypes::kInt32 | dtypes::kInt64;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, x)
        .input(kFloatsOrFp8, axes(gives(kNumTokens), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, w13)
        .input(kFloatsOrFp8, axes(gives(kNumExperts), exactly(kNumRows), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .or_dtype(dtypes::kFloat8E4m3)
        .with_rows_apart_or_transposed(),
    TESSERA_ARGUMENT(Args, w2)
        .input(kFloatsOrFp8,
               axes(exactly(kNumExperts), exactly(kHiddenSize), gives(kIntermediateSize)))
        .with_dtype_of(1)
        .with_rows_apart_or_transposed(),
    TESSERA_ARGUMENT(Args, topk_weights)
        .input(kFloats, axes(exactly(kNumTokens), gives(kTopK)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, topk_ids)
        .input(kIds, axes(exactly(kNumTokens), exactly(kTopK)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, expert_map)
        .optional_input(dtypes::kInt32, axes(gives(kNumGlobalExperts))),
    TESSERA_ARGUMENT(Args, w13_bias)
        .optional_input(kFloats, axes(exactly(kNumExperts), exactly(kNumRows)))
        .with_dtype_of(0)
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, w2_bias)
        .optional_input(kFloats, axes(exactly(kNumExperts), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, w13_scale)
        .optional_input(dtypes::kFloat32, flat(exactly(kNumW13Scales))),
    TESSERA_ARGUMENT(Args, w2_scale).optional_input(dtypes::kFloat32, flat(exactly(kNumW2Scales))),
    TESSERA_ARGUMENT(Args, x_scale).optional_input(dtypes::kFloat32, flat(exactly(kNumXScales))),
    TESSERA_ARGUMENT(Args, intermediate_scale)
        .optional_input(dtypes::kFloat32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, output)
        .output(kFloats, axes(exactly(kNumTokens), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .else_made_as(dtypes::kBfloat16)
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, activation).one_of(kActivationNames),
    TESSERA_ARGUMENT(Args, apply_router_weight_on_input),
    TESSERA_ARGUMENT(Args, batch_invariant),
    TESSERA_ARGUMENT(Args, swiglu_alpha),
    TESSERA_ARGUMENT(Args, swiglu_beta),
    TESSERA_ARGUMENT(Args, swiglu_limit),
    TESSERA_ARGUMENT(Args, use_ue8m0),
};

}  // namespace fused_experts_schema

inline constexpr Schema kFusedExpertsSchema{"fused_experts", fused_experts_schema::kArguments,
                                            fused_experts_schema::kSymbols};

/// Bytes of workspace on the context's device that the call needs. Reads numbers, data types and
/// shapes of `args`, and no array's memory. The number grows with T, k, H and F up to a limit,
/// above which a call works in chunks of tokens. On compute capability 9.0 it has up to 127 rows of
/// the intermediate for each expert besides.
TESSERA_API Status fused_experts_workspace_bytes(const FusedExpertsArgs& args,
                                                 const Context& context, std::size_t* bytes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status fused_experts(const FusedExpertsArgs& args, const Context& context);

}  // namespace tessera
