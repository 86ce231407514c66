// moe_permute: copies the hidden states of tokens to the order of their experts, for callers who
// multiply the rows of each expert with a grouped matrix product of their own.
//
// THE CONTRACT
//
// Let T be the number of tokens, k the slots per token (top_k), H the hidden size, E `num_experts`,
// B `block_size` and N = T k. A pair (t, s) is slot s of token t, and has the index i = t k + s.
// Its id is topk_ids[t][s]; its expert e is the id itself, or expert_map[id] if a map of length G
// is given. The pair counts if 0 <= id (< G) and 0 <= e < E.
//
//   count[e]  = number of pairs that count and have expert e
//   start[e]  = B * sum of ceil(count[f] / B) over f < e,  for e = 0 ... E
//   row(i)    = start[e] + number of pairs j < i that count and have the same expert e as pair i
//   capacity  = N + min(N, E) * (B - 1): more rows than that are never in use
//
//  1. expert_offsets[e] = start[e]: the first row of expert e, and for e = E the number of rows in
//     use.
//  2. inverse[t][s] = row(t k + s) if the pair counts, else -1.
//  3. rows[row(t k + s)] holds the bits of x[t], whatever they are: NaNs keep their payloads. So
//  the
//     rows of an expert are in the order of its pairs.
//  4. All other rows before start[E] are padding, and all their bits are 0.
//  5. The rows from start[E] on, and elements between rows that lie apart, are not written.
//  6. So the op is a pure function of its inputs: the same bits on every backend, in every run and
//     on any number of threads.
//  7. Any ids and any map entries are safe: nothing is read or written out of bounds, also if
//     another thread or stream changes the contents of inputs during the call; the outputs then
//     have unspecified values.
//  8. Bad arguments are refused before anything is written. k = 0 is a bad argument.
//  9. T = 0 and H = 0 are valid.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output and no workspace. The paragraphs
// of align_block_size.hpp on contexts and programmatic dependent launch also apply.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/align_block_size.hpp"
#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

struct MoePermuteArgs {
  // Inputs. All arrays are aligned to their element size, on the context's device. The last axis of
  // an array whose rows may lie apart is contiguous, and the first steps over what it holds.
  TensorView x;           ///< [T, H]; float16, bfloat16, float32 or float8_e4m3fn; rows apart
  TensorView topk_ids;    ///< [T, k]; int32 or int64, contiguous
  TensorView expert_map;  ///< optional int32[G]: id -> expert; other entries than [0, E): none

  // Outputs. Neither an output nor the workspace may overlap another array of the call.
  TensorView rows;            ///< [capacity, H], of x's data type; rows may lie apart
  TensorView expert_offsets;  ///< int32[E + 1]
  TensorView inverse;         ///< int32[T, k]

  std::int64_t num_experts = 0;
  std::int64_t block_size = 1;  ///< the rows of each expert are padded to a multiple of it
};

namespace moe_permute_schema {

enum Symbol : std::int8_t {
  kNumTokens,
  kHiddenSize,
  kTopK,
  kNumGlobalExperts,
  kNumExperts,
  kCapacity,
  kNumOffsets
};
inline constexpr const char* kSymbols[] = {
    "T", "H", "k", "G", "num_experts", "capacity", "num_experts + 1"};

using Args = MoePermuteArgs;

inline constexpr DtypeSet kRows =
    dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32 | dtypes::kFloat8E4m3;
inline constexpr DtypeSet kIds = dtypes::kInt32 | dtypes::kInt64;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, x)
        .input(kRows, axes(gives(kNumTokens), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, topk_ids).input(kIds, axes(exactly(kNumTokens), gives(kTopK))),
    TESSERA_ARGUMENT(Args, expert_map)
        .optional_input(dtypes::kInt32, axes(gives(kNumGlobalExperts))),
    TESSERA_ARGUMENT(Args, rows)
        .output(kRows, axes(exactly(kCapacity), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, expert_offsets).output(dtypes::kInt32, axes(exactly(kNumOffsets))),
    TESSERA_ARGUMENT(Args, inverse)
        .output(dtypes::kInt32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, num_experts).between(1, kAlignBlockSizeMaxExperts).giving(kNumExperts),
    TESSERA_ARGUMENT(Args, block_size).between(1, kInt32Max),
};

}  // namespace moe_permute_schema

inline constexpr Schema kMoePermuteSchema{"moe_permute", moe_permute_schema::kArguments,
                                          moe_permute_schema::kSymbols};

struct MoePermuteSizes {
  std::int64_t capacity = 0;        ///< rows of `rows`
  std::size_t workspace_bytes = 0;  ///< for the implementation that the same context selects
};

/// Sizes of `rows` and of the workspace. Reads numbers, data types and shapes of the inputs in
/// `args`, and no array's memory. Fails with kInvalidValue if they lie outside the op's domain or
/// the capacity exceeds int32, and with kUnsupported if no implementation can run in this context.
TESSERA_API Status moe_permute_sizes(const MoePermuteArgs& args, const Context& context,
                                     MoePermuteSizes* sizes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status moe_permute(const MoePermuteArgs& args, const Context& context);

}  // namespace tessera
