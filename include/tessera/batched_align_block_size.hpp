// batched_align_block_size: lays out the tokens of batches that are already sorted, one batch per
// expert, in padded blocks: align_block_size for the batched layout of activations.
//
// THE CONTRACT
//
// Let M be `max_tokens_per_batch`, the rows that every batch has room for, B `block_size`, and n
// the number of batches, which is the number of elements of `expert_num_tokens`. Row j of batch b
// has index b * M + j.
//
//   count[b]   = expert_num_tokens[b], or 0 if it is below 0, or M if it is above M
//   blocks[b]  = ceil(count[b] / B)
//   start[b]   = B * sum of blocks[c] over c < b
//   filler     = n * M
//   capacity   = n * ceil(M / B) * B
//
//  1. num_tokens_post_pad[0] = B * sum of all blocks.
//  2. sorted_token_ids[start[b] .. start[b] + count[b]) holds b * M, b * M + 1, and so on: the
//     indices of the first count[b] rows of batch b. The op is a pure function of its inputs: the
//     same bits on every run and backend.
//  3. Every other element of sorted_token_ids, to the end of the caller's buffer, is the filler.
//  4. expert_ids[k], for a block k of batch b, is b. Every element past the last block, to the end
//     of the caller's buffer, is `tail_expert`.
//  5. Any counts are safe: nothing is read or written out of bounds. This holds even if another
//     thread or stream changes them during the call; the outputs then have unspecified values.
//  6. Bad arguments are refused before anything is written.
//  7. No batches, and batches without room for a token, are valid.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output. The paragraphs of
// align_block_size.hpp on contexts and programmatic dependent launch also apply.
#pragma once

#include <cstdint>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

/// The arguments that determine the sizes of the outputs. Capacity and filler are at most 2^31 - 1.
struct BatchedAlignBlockSizeShape {
  std::int64_t num_batches = 0;           ///< n, 0 <= n <= 2^31 - 1
  std::int64_t max_tokens_per_batch = 0;  ///< M, 0 <= M <= 2^31 - 1
  std::int64_t block_size = 0;            ///< B, 1 <= B <= 2^31 - 1; no power of two required
};

/// Smallest legal sizes. A caller's output buffers may be longer; each is filled over its length.
struct BatchedAlignBlockSizeSizes {
  std::int64_t sorted_token_ids = 0;  ///< elements: the capacity
  std::int64_t expert_ids = 0;        ///< elements: capacity / B
};

struct BatchedAlignBlockSizeArgs {
  // Inputs. All arrays are contiguous, aligned to their element size, on the context's device.
  TensorView expert_num_tokens;  ///< int32[n]
  std::int64_t max_tokens_per_batch = 0;
  std::int64_t block_size = 0;
  std::int32_t tail_expert = -1;  ///< value of expert_ids past the last block

  // Outputs, int32. Neither an output nor the context's workspace, which this op does not use, may
  // overlap another array of the call.
  TensorView sorted_token_ids;     ///< [>= capacity]
  TensorView expert_ids;           ///< [>= capacity / B]
  TensorView num_tokens_post_pad;  ///< [1]
};

namespace batched_align_block_size_schema {

enum Symbol : std::int8_t { kNumBatches, kCapacity, kNumBlocks };
inline constexpr const char* kSymbols[] = {"n", "capacity", "blocks"};

using Args = BatchedAlignBlockSizeArgs;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, expert_num_tokens).input(dtypes::kInt32, flat(gives(kNumBatches))),
    TESSERA_ARGUMENT(Args, sorted_token_ids).output(dtypes::kInt32, flat(at_least(kCapacity))),
    TESSERA_ARGUMENT(Args, expert_ids).output(dtypes::kInt32, flat(at_least(kNumBlocks))),
    TESSERA_ARGUMENT(Args, num_tokens_post_pad).output(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, max_tokens_per_batch).between(0, kInt32Max),
    TESSERA_ARGUMENT(Args, block_size).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, tail_expert),
};

}  // namespace batched_align_block_size_schema

inline constexpr Schema kBatchedAlignBlockSizeSchema{"batched_align_block_size",
                                                     batched_align_block_size_schema::kArguments,
                                                     batched_align_block_size_schema::kSymbols};

/// Sizes of the outputs; the op needs no workspace. Fails with kInvalidValue if the shape is
/// outside its domain.
TESSERA_API Status batched_align_block_size_sizes(const BatchedAlignBlockSizeShape& shape,
                                                  BatchedAlignBlockSizeSizes* sizes);

/// Runs the op on the context's device and stream; the rest of the context has no effect, as there
/// is one implementation per backend. Fails with kInvalidType (data types), kInvalidValue (values,
/// sizes, devices, contiguity, overlap), kUnsupported (no backend, or on a CUDA device more batches
/// than its shared memory has words) or kRuntimeError, before any write.
TESSERA_API Status batched_align_block_size(const BatchedAlignBlockSizeArgs& args,
                                            const Context& context);

}  // namespace tessera
