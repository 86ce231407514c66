// moe_unpermute: brings the rows of a grouped GEMM, which are sorted by expert, back to the order
// of the tokens, and adds up the rows of each token, weighted by the router. It is the last step of
// a Mixture-of-Experts layer whose experts write one row per pair of a token and an expert. If
// these rows are in the order of the tokens already, `moe_sum` adds them up.
//
// THE CONTRACT
//
// Let M be the number of rows, H the hidden size, T the number of tokens and k the slots per token
// (top_k). A pair is a slot s of a token t; inverse[t][s] is the number of its row. The pair counts
// if that number lies in [0, M), and adds nothing if it is any other number, such as -1 for an
// expert on another rank. Several pairs may have the same row, and a row need not have a pair.
//
// Let s_1 < s_2 < ... < s_n be the slots of t that count. Write x[i] for rows[inverse[t][s_i]][h],
// and w[i] for topk_weights[t][s_i], or 1 if no weights are given. float32(v) is the float32
// nearest to the real number v, ties to even: subnormals are kept, and values that are too large
// become infinities.
//
//   sum[1] = float32(w[1] * x[1])
//   sum[i] = float32(w[i] * x[i] + sum[i - 1])     one rounding, for i = 2 ... n
//
//  1. output[t][h] is sum[n], rounded once to the data type of the output: to nearest, ties to
//     even, subnormals kept. Products, sums and zeros have the signs that IEEE 754 gives them. If
//     n = 0, it is +0.
//  2. Where sum[n] is a NaN, the output is the positive NaN with all bits of its mantissa set:
//     0x7FFF in 16 bits, 0x7FFFFFFF in 32.
//  3. Rows without a pair, and weights of pairs that do not count, change nothing, whatever they
//     hold: a NaN there reaches no output. Rows without a pair need not be initialised.
//  4. So the op is a pure function of its inputs, to the last bit: on every backend, in every run
//     and on any number of threads; a token's output does not depend on the other tokens, nor on
//     the order of the rows. On the host a call computes in the default floating-point environment,
//     whatever the caller's rounding mode is and whether or not it flushes subnormals, and leaves
//     the caller's as it was.
//  5. Elements between the rows of an output whose rows lie apart are not written.
//  6. Any values of any input array are safe: nothing is read or written out of bounds. That holds
//     even if another thread or stream changes them during the call; the output then has
//     unspecified values.
//  7. Bad arguments are refused before anything is written. k = 0 is a bad argument.
//  8. T = 0, H = 0 and M = 0 are valid.
//
// Rules 1 to 3 fix every bit, and `exact_bits` checks them. `error_bound` also accepts programs
// that sum in another order, or round products by themselves: the bound that moe_sum.hpp derives,
// of the n terms that count. Where none counts, it asks for a zero.
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

struct MoeUnpermuteArgs {
  // Inputs. All arrays are aligned to their element size, on the context's device. The last axis of
  // an array whose rows may lie apart is contiguous, and the other axis steps over it.
  TensorView rows;          ///< [M, H]; float16, bfloat16 or float32; rows may lie apart
  TensorView topk_weights;  ///< optional float32[T, k], contiguous
  TensorView inverse;       ///< int32[T, k], contiguous: the row of each pair, or any other number

  // May not overlap another array of the call.
  TensorView output;  ///< [T, H], of the rows' data type; rows may lie apart
};

namespace moe_unpermute_schema {

enum Symbol : std::int8_t { kNumRows, kHiddenSize, kNumTokens, kTopK };
inline constexpr const char* kSymbols[] = {"M", "H", "T", "k"};

using Args = MoeUnpermuteArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, rows)
        .input(kFloats, axes(gives(kNumRows), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, topk_weights)
        .optional_input(dtypes::kFloat32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, inverse).input(dtypes::kInt32, axes(gives(kNumTokens), gives(kTopK))),
    TESSERA_ARGUMENT(Args, output)
        .output(kFloats, axes(exactly(kNumTokens), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart(),
};

}  // namespace moe_unpermute_schema

inline constexpr Schema kMoeUnpermuteSchema{"moe_unpermute", moe_unpermute_schema::kArguments,
                                            moe_unpermute_schema::kSymbols};

/// Runs the op; no implementation needs workspace. Fails with kInvalidType (data types),
/// kInvalidValue (values, shapes, devices, strides, overlap), kUnsupported (the device cannot run
/// it) or kRuntimeError, before any write.
TESSERA_API Status moe_unpermute(const MoeUnpermuteArgs& args, const Context& context);

}  // namespace tessera
