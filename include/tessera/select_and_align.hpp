// select_and_align: chooses each token's experts, and groups the (token, slot) pairs by expert:
// select_experts, then align_block_size of its ids, in one call.
//
// THE CONTRACT
//
//  1. topk_weights and topk_ids are those of select_experts for the same arguments, to the last
//     bit.
//  2. sorted_token_ids, expert_ids, num_tokens_post_pad, expert_counts and statistics are those of
//     align_block_size for these topk_ids, num_experts = E and the same arguments; the arguments of
//     align_block_size that this op does not have keep their defaults, so that expert_ids ends with
//     -1. Tokens that do not count (num_valid_tokens) have ids -1: their pairs are in no group.
//  3. Any values of any input array are safe: nothing is read or written out of bounds, also if
//     they change during the call; the outputs then have unspecified values.
//  4. Bad arguments are refused before anything is written. T = 0 is valid; E and k are at least 1,
//     E is at most kAlignBlockSizeMaxExperts, and T * k and the capacity are at most 2^31 - 1.
//
// What else select_experts.hpp and align_block_size.hpp state of their ops also holds here: the
// floating-point environment on the host, and on a device asynchronous calls, graphs, contexts and
// programmatic dependent launch. On a device few tokens take one launch, and others one for each of
// the two ops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/align_block_size.hpp"
#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/select_experts.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

struct SelectAndAlignArgs {
  // Inputs. All arrays are aligned to their element size, on the context's device.
  TensorView router_logits;     ///< [T, E]; float16, bfloat16 or float32; rows may lie apart
  TensorView correction_bias;   ///< optional float32[E]: added to the scores for the choice alone
  TensorView num_valid_tokens;  ///< optional int32[1]: later tokens are padding
  TensorView expert_map;        ///< optional int32[E]: global expert -> local expert, else remote

  // Outputs, contiguous. Neither an output nor the workspace may overlap another array of the call.
  TensorView topk_weights;         ///< float32[T, k]
  TensorView topk_ids;             ///< int32[T, k]
  TensorView sorted_token_ids;     ///< int32[>= capacity]
  TensorView expert_ids;           ///< int32[>= ceil(capacity / block_size)]
  TensorView num_tokens_post_pad;  ///< int32[1]

  std::int64_t top_k = 0;       ///< 1 ... E, and at most what topk_group groups have
  std::int64_t block_size = 0;  ///< at least 1
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = false;             ///< divide the weights of a token by their sum
  std::int64_t num_expert_group = 1;    ///< divides E
  std::int64_t topk_group = 1;          ///< groups that stay, 1 ... num_expert_group
  float routed_scaling_factor = 1;      ///< finite
  bool ignore_invalid_experts = false;  ///< with a map: leave out the pairs of remote experts
  bool pad_sorted_ids = false;          ///< round the capacity up to a multiple of block_size

  TensorView expert_counts;  ///< optional int32[E]; by local expert with ignore_invalid_experts
  TensorView statistics;     ///< optional float64[kAlignBlockSizeNumStatistics]
};

namespace select_and_align_schema {

enum Symbol : std::int8_t { kNumTokens, kNumExperts, kTopK, kCapacity, kNumBlocks };
inline constexpr const char* kSymbols[] = {"T", "E", "k", "capacity", "blocks"};

using Args = SelectAndAlignArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, router_logits)
        .input(kFloats, axes(gives(kNumTokens), gives(kNumExperts, kAlignBlockSizeMaxExperts)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, correction_bias)
        .optional_input(dtypes::kFloat32, axes(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, num_valid_tokens).optional_input(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, expert_map).optional_input(dtypes::kInt32, flat(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, topk_weights)
        .output(dtypes::kFloat32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, topk_ids)
        .output(dtypes::kInt32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, sorted_token_ids).output(dtypes::kInt32, flat(at_least(kCapacity))),
    TESSERA_ARGUMENT(Args, expert_ids).output(dtypes::kInt32, flat(at_least(kNumBlocks))),
    TESSERA_ARGUMENT(Args, num_tokens_post_pad).output(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, top_k).between(1, kInt32Max).giving(kTopK),
    TESSERA_ARGUMENT(Args, block_size).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, scoring).one_of(kScoringNames),
    TESSERA_ARGUMENT(Args, renormalize),
    TESSERA_ARGUMENT(Args, num_expert_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, topk_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, routed_scaling_factor),
    TESSERA_ARGUMENT(Args, ignore_invalid_experts),
    TESSERA_ARGUMENT(Args, pad_sorted_ids),
    TESSERA_ARGUMENT(Args, expert_counts)
        .optional_output(dtypes::kInt32, flat(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, statistics)
        .optional_output(dtypes::kFloat64, flat(constantly(kAlignBlockSizeNumStatistics))),
};

}  // namespace select_and_align_schema

inline constexpr Schema kSelectAndAlignSchema{
    "select_and_align", select_and_align_schema::kArguments, select_and_align_schema::kSymbols};

/// Lengths of the outputs and bytes of workspace for the implementation that the same context
/// selects. Reads numbers, data types and shapes of `args`, and no array's memory.
TESSERA_API Status select_and_align_sizes(const SelectAndAlignArgs& args, const Context& context,
                                          AlignBlockSizeSizes* sizes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status select_and_align(const SelectAndAlignArgs& args, const Context& context);

}  // namespace tessera
