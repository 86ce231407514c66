// moe_sum: adds up the outputs of each token's experts, weighted by the router. This is the last
// step of a Mixture-of-Experts layer.
//
// THE CONTRACT
//
// Let T be the number of tokens, k the slots per token (top_k) and H the hidden size. Write x[s]
// for input[t][s][h], and w[s] for topk_weights[t][s], or 1 if no weights are given. float32(v)
// is the float32 nearest to the real number v, ties to even: subnormals are kept, and values that
// are too large become infinities.
//
//   sum[0] = float32(w[0] * x[0])
//   sum[s] = float32(w[s] * x[s] + sum[s - 1])     one rounding, for s = 1 ... k - 1
//
//  1. output[t][h] is sum[k - 1], rounded once to the data type of the output: to nearest, ties to
//     even, subnormals kept. Products, sums and zeros have the signs that IEEE 754 gives them.
//  2. Where sum[k - 1] is a NaN, the output is the positive NaN with all bits of its mantissa set:
//     0x7FFF in 16 bits, 0x7FFFFFFF in 32.
//  3. So the op is a pure function of its inputs, to the last bit: on every backend, in every run
//     and on any number of threads; a token's output does not depend on the other tokens. On the
//     host a call computes in the default floating-point environment, whatever the caller's
//     rounding mode is and whether or not it flushes subnormals, and leaves the caller's as it was.
//  4. Elements between the rows of an output whose rows lie apart are not written.
//  5. Any values of any input array are safe: nothing is read or written out of bounds. That holds
//     even if another thread or stream changes them during the call; the output then has
//     unspecified values.
//  6. Bad arguments are refused before anything is written. k = 0 is a bad argument.
//  7. T = 0 and H = 0 are valid.
//
// Rules 1 and 2 fix every bit, and `exact_bits` checks them. `error_bound` also accepts programs
// that sum in another order, or round products by themselves. Let u = 2^-24 be the unit
// roundoff of float32, S the real number sum(w[s] * x[s]), and A = sum(|w[s] * x[s]|). Then
//
//   |sum - S| <= B,   B = gamma(k) * A + k * 2^-149,   gamma(k) = k * u / (1 - k * u),
//
// for any order of the k additions, with or without fused products: each term goes through at
// most k roundings, which multiply it by factors (1 + d), |d| <= u, whose product differs from 1 by
// at most gamma(k): N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition
// (2002), lemma 3.1 and section 3.1. The second term of B covers underflow, which happens only to
// products, as float32 adds subnormals exactly: at most 2^-150 each, doubled for later roundings.
// Rounding to the output's type preserves order, so the output lies between S - B and S + B, each
// rounded to that type: within B and half a unit in the last place.
// There is no bound if a partial sum may overflow, because that depends on the order.
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

struct MoeSumArgs {
  // Inputs. All arrays are aligned to their element size, on the context's device. The last axis of
  // an array whose rows may lie apart is contiguous, and each other axis steps over what the next
  // ones hold.
  TensorView input;         ///< [T, k, H]; float16, bfloat16 or float32; rows may lie apart
  TensorView topk_weights;  ///< optional float32[T, k], contiguous

  // May not overlap another array of the call.
  TensorView output;  ///< [T, H], of the input's data type; rows may lie apart
};

namespace moe_sum_schema {

enum Symbol : std::int8_t { kNumTokens, kTopK, kHiddenSize };
inline constexpr const char* kSymbols[] = {"T", "k", "H"};

using Args = MoeSumArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, input)
        .input(kFloats, axes(gives(kNumTokens), gives(kTopK), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, topk_weights)
        .optional_input(dtypes::kFloat32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, output)
        .output(kFloats, axes(exactly(kNumTokens), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart(),
};

}  // namespace moe_sum_schema

inline constexpr Schema kMoeSumSchema{"moe_sum", moe_sum_schema::kArguments,
                                      moe_sum_schema::kSymbols};

/// Runs the op; no implementation needs workspace. Fails with kInvalidType (data types),
/// kInvalidValue (values, shapes, devices, strides, overlap), kUnsupported (the device cannot run
/// it) or kRuntimeError, before any write.
TESSERA_API Status moe_sum(const MoeSumArgs& args, const Context& context);

}  // namespace tessera
