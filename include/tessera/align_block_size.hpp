// align_block_size: groups the (token, slot) pairs of a Mixture-of-Experts layer by expert and pads
// every group to a multiple of the block size, so that the experts' matrix products run in tiles.
//
// THE CONTRACT
//
// Let N be the number of elements of `topk_ids`, B `block_size` and E `num_experts`.
// Element i of the flattened, row-major `topk_ids` is one (token, slot) pair.
//
//   bucket(i)   = topk_ids[i]                 if 0 <= topk_ids[i] < E, else none (dropped)
//   group(i)    = -1                          with `filtered_group`, if topk_ids[i] = -1
//               = bucket(i)                   without a map, or with `ignore_invalid_experts` off
//               = map(bucket(i)), if not -1   with a map and `ignore_invalid_experts` on
//   map(e)      = expert_map[e]               if 0 <= expert_map[e] < E, else -1 (remote)
//   count[g]    = number of i with group(i) = g
//   blocks[g]   = ceil(count[g] / B)
//   start[g]    = B * sum of blocks[h] over h < g
//   capacity    = N + min(N, G) * (B - 1), rounded up to a multiple of B with `pad_sorted_ids`;
//                 G = E, the number of groups, or E + 1 with `filtered_group`
//
//  1. num_tokens_post_pad[0] = B * sum of all blocks.
//  2. sorted_token_ids[start[g] .. start[g] + count[g]) holds exactly the i with group(i) = g, in
//     ascending order. The op is therefore stable and a pure function of its inputs: the same bits
//     on every run, backend and number of threads.
//  3. Every other element of sorted_token_ids, to the end of the caller's buffer, is N.
//  4. expert_ids[b], for a block b of group g, is g; with a map and `ignore_invalid_experts` off it
//     is map(g), which is -1 for a remote expert, and -1 for g = -1. Every element past the last
//     block, to the end of the caller's buffer, is `tail_expert`; with a map and `map_tail` it is
//     map(tail_expert).
//  5. If given: expert_counts[g] = count[g] for g >= 0; num_dropped[0] = number of ids < 0 or >= E
//     that are in no group. Pairs of remote experts are not dropped ids. The elements of
//     `statistics` and `validation` are AlignBlockSizeStatistic and AlignBlockSizeValidation.
//  6. Any ids and any map entries are safe: nothing is read or written out of bounds. This holds
//     even if another thread or stream changes them during the call; the outputs then have
//     unspecified values.
//  7. Bad arguments are refused before anything is written.
//  8. N = 0 is valid.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output and no workspace.
//
// A call runs in the current context if that belongs to the device, else in the device's primary
// context. It restores the thread's current context, and creates no context on another device. In a
// green context or another partition with fewer multiprocessors it runs an implementation that fits
// there.
//
// Programmatic dependent launch: a call may start while the kernel before it in the stream runs. It
// waits for that kernel before it touches global memory (griddepcontrol.wait), and lets the kernel
// after it start before that wait. So before its own wait, a kernel launched after it in the same
// way may run concurrently with the call and with everything that the call waits for: until then it
// must not rely on anything that earlier work in the stream writes, nor write anything that earlier
// work reads. Once its wait returns, the call and everything before it are complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

/// Largest number of experts: far above any model, and far enough below 2^31 for arithmetic on
/// expert numbers in 32 bits.
inline constexpr std::int64_t kAlignBlockSizeMaxExperts = std::int64_t{1} << 30;

/// The arguments that determine the sizes of the outputs.
struct AlignBlockSizeShape {
  std::int64_t num_ids = 0;      ///< N = tokens * top_k, 0 <= N <= 2^31 - 1
  std::int64_t block_size = 0;   ///< B, 1 <= B <= 2^31 - 1; no power of two required
  std::int64_t num_experts = 0;  ///< E, 1 <= E <= kAlignBlockSizeMaxExperts
  bool pad_sorted_ids = false;   ///< round the capacity up to a multiple of B
  bool filtered_group = false;   ///< the pairs with id -1 form a group of their own
};

/// Elements of `statistics`, exact float64 numbers. Loads are counts of pairs per expert.
enum class AlignBlockSizeStatistic : int {
  kAssignedPairs,  ///< sum of expert_counts
  kActiveExperts,  ///< experts with at least one pair
  kUsedBlocks,     ///< num_tokens_post_pad / B
  kPaddingSlots,   ///< slots of used blocks without a pair
  kMaxLoad,
  kMeanLoad,  ///< assigned pairs / E, over all experts
};
inline constexpr std::int64_t kAlignBlockSizeNumStatistics = 6;

/// Elements of `validation`, int64. An id is invalid if it is in no group and not remote, a map
/// entry if it lies outside [-1, E). Positions index the flattened array; -1, with value 0, if
/// there is none. Values are sign-extended; uint64 values are cast to int64.
enum class AlignBlockSizeValidation : int {
  kNumInvalidIds,
  kFirstInvalidId,       ///< position in topk_ids
  kFirstInvalidIdValue,  ///< value there
  kNumInvalidMapEntries,
  kFirstInvalidMapEntry,       ///< position in expert_map
  kFirstInvalidMapEntryValue,  ///< value there
};
inline constexpr std::int64_t kAlignBlockSizeValidationLength = 6;

/// Smallest legal sizes. A caller's output buffers may be longer; each is filled over its length.
struct AlignBlockSizeSizes {
  std::int64_t sorted_token_ids = 0;  ///< elements: the capacity
  std::int64_t expert_ids = 0;        ///< elements: ceil(capacity / B)
  std::size_t workspace_bytes = 0;    ///< for the implementation that the same context selects
};

struct AlignBlockSizeArgs {
  // Inputs. All arrays are contiguous, aligned to their element size, on the context's device.
  TensorView topk_ids;  ///< any shape; int8 ... int64 or uint8 ... uint64
  std::int64_t block_size = 0;
  std::int64_t num_experts = 0;
  TensorView expert_map;  ///< optional int32[E]: global expert -> local expert, else remote
  bool ignore_invalid_experts = false;  ///< with a map: leave out the pairs of remote experts
  bool pad_sorted_ids = false;
  std::int32_t tail_expert = -1;  ///< value of expert_ids past the last block
  bool map_tail = false;          ///< with a map: use the map's entry of tail_expert there
  bool filtered_group = false;    ///< the pairs with id -1 form a group of their own, the first

  // Outputs, int32 except the last two. Neither an output nor the workspace may overlap another
  // array of the call.
  TensorView sorted_token_ids;     ///< [>= capacity]
  TensorView expert_ids;           ///< [>= ceil(capacity / B)]
  TensorView num_tokens_post_pad;  ///< [1]
  TensorView expert_counts;        ///< optional [E]; by local expert with ignore_invalid_experts
  TensorView num_dropped;          ///< optional [1]
  TensorView statistics;           ///< optional float64[kAlignBlockSizeNumStatistics]
  TensorView validation;           ///< optional int64[kAlignBlockSizeValidationLength]
};

namespace align_block_size_schema {

enum Symbol : std::int8_t { kNumIds, kNumExperts, kCapacity, kNumBlocks };
inline constexpr const char* kSymbols[] = {"N", "num_experts", "capacity", "blocks"};

using Args = AlignBlockSizeArgs;

// Last come the arguments that few calls give.
inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, topk_ids).input(dtypes::kIntegers, flat(gives(kNumIds))),
    TESSERA_ARGUMENT(Args, expert_map).optional_input(dtypes::kInt32, flat(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, sorted_token_ids).output(dtypes::kInt32, flat(at_least(kCapacity))),
    TESSERA_ARGUMENT(Args, expert_ids).output(dtypes::kInt32, flat(at_least(kNumBlocks))),
    TESSERA_ARGUMENT(Args, num_tokens_post_pad).output(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, block_size).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, num_experts).between(1, kAlignBlockSizeMaxExperts).giving(kNumExperts),
    TESSERA_ARGUMENT(Args, ignore_invalid_experts),
    TESSERA_ARGUMENT(Args, pad_sorted_ids),
    TESSERA_ARGUMENT(Args, tail_expert),
    TESSERA_ARGUMENT(Args, expert_counts)
        .optional_output(dtypes::kInt32, flat(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, num_dropped).optional_output(dtypes::kInt32, flat(constantly(1))),
    TESSERA_ARGUMENT(Args, statistics)
        .optional_output(dtypes::kFloat64, flat(constantly(kAlignBlockSizeNumStatistics))),
    TESSERA_ARGUMENT(Args, validation)
        .optional_output(dtypes::kInt64, flat(constantly(kAlignBlockSizeValidationLength))),
    TESSERA_ARGUMENT(Args, map_tail),
    TESSERA_ARGUMENT(Args, filtered_group),
};

}  // namespace align_block_size_schema

inline constexpr Schema kAlignBlockSizeSchema{
    "align_block_size", align_block_size_schema::kArguments, align_block_size_schema::kSymbols};

/// Sizes of outputs and workspace. Reads `context.device`, `num_threads` and `implementation`.
/// Fails with kInvalidValue if the shape is outside its domain or the capacity exceeds int32, and
/// with kUnsupported if no implementation can run in this context.
TESSERA_API Status align_block_size_sizes(const AlignBlockSizeShape& shape, const Context& context,
                                          AlignBlockSizeSizes* sizes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, sizes, devices,
/// contiguity, overlap), kUnsupported (no implementation) or kRuntimeError, before any write.
TESSERA_API Status align_block_size(const AlignBlockSizeArgs& args, const Context& context);

/// Lists the implementations, fastest first: which one align_block_size would run for this shape
/// and context, and why it would not run the others. Uses the same dispatch as a call.
TESSERA_API Status explain_align_block_size(const AlignBlockSizeShape& shape,
                                            const Context& context,
                                            std::vector<ImplementationReport>* reports);

}  // namespace tessera
