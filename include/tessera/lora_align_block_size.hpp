// lora_align_block_size: align_block_size for every LoRA adapter, applied to the pairs of the
// tokens that use it, in one call. The tiles of an adapter's matrix products then hold one expert
// each.
//
// THE CONTRACT
//
// Let N be the number of elements of `topk_ids`, K `top_k`, B `block_size` and E `num_experts`.
// Element i of the flattened, row-major `topk_ids` is one (token, slot) pair, of token
// floor(i / K).
//
//   active(l)   = (lora_ids is not given, or one of its elements is l) and
//                 (adapter_enabled is not given, or adapter_enabled[l] != 0)
//   row(i)      = token_lora_mapping[floor(i / K)]  if that lies in [0, max_loras) and is active,
//                                                   else none: the pair is left out
//   capacity    = N + min(N, E) * (B - 1), rounded up to a multiple of B with `pad_sorted_ids`:
//                 the capacity of align_block_size, as if all pairs were in one row
//
//  1. Each output has max_loras rows of equal length, one after the other. Row l, and element l of
//     num_tokens_post_pad, are the outputs of align_block_size for the pairs with row(i) = l and
//     for outputs of that length, with `ignore_invalid_experts`, so that groups are formed by local
//     expert if there is a map. Indices i count all pairs, and padding is N.
//  2. So a row without pairs, such as the row of an inactive adapter, has a padded total of 0; its
//     sorted_token_ids are all N and its expert_ids all `tail_expert`.
//  3. The order inside a group is ascending: the op is stable and a pure function of its inputs.
//  4. Any values of any input array are safe: nothing is read or written out of bounds. This holds
//     even if another thread or stream changes them during the call; the outputs then have
//     unspecified values.
//  5. Bad arguments are refused before anything is written.
//  6. N = 0 is valid.
//
// On a device the call is asynchronous on the context's stream, as align_block_size is. The
// paragraphs of align_block_size.hpp on contexts and programmatic dependent launch also apply.
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

/// Largest number of rows: far above any server, and far enough below 2^31 for arithmetic on the
/// elements of all rows in 64 bits.
inline constexpr std::int64_t kLoraAlignBlockSizeMaxLoras = std::int64_t{1} << 20;

/// The arguments that determine the sizes of the outputs.
struct LoraAlignBlockSizeShape {
  std::int64_t num_ids = 0;      ///< N = tokens * top_k, 0 <= N <= 2^31 - 1
  std::int64_t block_size = 0;   ///< B, 1 <= B <= 2^31 - 1; no power of two required
  std::int64_t num_experts = 0;  ///< E, 1 <= E <= kAlignBlockSizeMaxExperts
  std::int64_t max_loras = 0;    ///< rows, 1 <= max_loras <= kLoraAlignBlockSizeMaxLoras
  bool pad_sorted_ids = false;   ///< round the capacity up to a multiple of B
};

/// Smallest legal sizes. A caller's rows may be longer; each is filled over its length.
struct LoraAlignBlockSizeSizes {
  std::int64_t sorted_token_ids = 0;  ///< elements per row: the capacity
  std::int64_t expert_ids = 0;        ///< elements per row: ceil(capacity / B)
  std::size_t workspace_bytes = 0;    ///< on the context's device
};

struct LoraAlignBlockSizeArgs {
  // Inputs. All arrays are contiguous, aligned to their element size, on the context's device.
  TensorView topk_ids;            ///< [tokens, K]; int8 ... int64 or uint8 ... uint64
  std::int64_t top_k = 0;         ///< K, pairs per token, 1 <= K <= 2^31 - 1; divides N
  TensorView token_lora_mapping;  ///< int32[N / K], the adapter of each token
  std::int64_t block_size = 0;
  std::int64_t num_experts = 0;
  std::int64_t max_loras = 0;
  TensorView adapter_enabled;  ///< optional int32[>= max_loras]; 0: disabled
  TensorView lora_ids;         ///< optional int32[any]: the adapters in use, in any order
  TensorView expert_map;       ///< optional int32[E]: global expert -> local expert, else remote
  bool pad_sorted_ids = false;
  std::int32_t tail_expert = -1;  ///< value of a row of expert_ids past its last block

  // Outputs, int32. Neither an output nor the workspace may overlap another array of the call.
  TensorView sorted_token_ids;     ///< max_loras rows of >= capacity
  TensorView expert_ids;           ///< max_loras rows of >= ceil(capacity / B)
  TensorView num_tokens_post_pad;  ///< [max_loras]
};

namespace lora_align_block_size_schema {

enum Symbol : std::int8_t { kNumIds, kNumTokens, kNumExperts, kMaxLoras, kCapacity, kNumBlocks };
inline constexpr const char* kSymbols[] = {
    "N", "N / top_k", "num_experts", "max_loras", "max_loras * capacity", "max_loras * blocks"};

using Args = LoraAlignBlockSizeArgs;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, topk_ids).input(dtypes::kIntegers, flat(gives(kNumIds))),
    TESSERA_ARGUMENT(Args, token_lora_mapping).input(dtypes::kInt32, flat(exactly(kNumTokens))),
    TESSERA_ARGUMENT(Args, adapter_enabled)
        .optional_input(dtypes::kInt32, flat(at_least(kMaxLoras))),
    TESSERA_ARGUMENT(Args, lora_ids).optional_input(dtypes::kInt32, flat(any_length())),
    TESSERA_ARGUMENT(Args, expert_map).optional_input(dtypes::kInt32, flat(exactly(kNumExperts))),
    TESSERA_ARGUMENT(Args, sorted_token_ids).output(dtypes::kInt32, flat(at_least(kCapacity))),
    TESSERA_ARGUMENT(Args, expert_ids).output(dtypes::kInt32, flat(at_least(kNumBlocks))),
    TESSERA_ARGUMENT(Args, num_tokens_post_pad).output(dtypes::kInt32, flat(exactly(kMaxLoras))),
    TESSERA_ARGUMENT(Args, block_size).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, num_experts).between(1, kAlignBlockSizeMaxExperts).giving(kNumExperts),
    TESSERA_ARGUMENT(Args, max_loras).between(1, kLoraAlignBlockSizeMaxLoras).giving(kMaxLoras),
    TESSERA_ARGUMENT(Args, top_k).between(1, kInt32Max).as_row_length_of(0),
    TESSERA_ARGUMENT(Args, pad_sorted_ids),
    TESSERA_ARGUMENT(Args, tail_expert),
};

}  // namespace lora_align_block_size_schema

inline constexpr Schema kLoraAlignBlockSizeSchema{"lora_align_block_size",
                                                  lora_align_block_size_schema::kArguments,
                                                  lora_align_block_size_schema::kSymbols};

/// Sizes of outputs and workspace. Reads `context.device`. Fails with kInvalidValue if the shape is
/// outside its domain or the capacity exceeds int32, and with kUnsupported if the op cannot run.
TESSERA_API Status lora_align_block_size_sizes(const LoraAlignBlockSizeShape& shape,
                                               const Context& context,
                                               LoraAlignBlockSizeSizes* sizes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, sizes, devices,
/// contiguity, overlap), kUnsupported (the device cannot run it) or kRuntimeError, before any
/// write.
TESSERA_API Status lora_align_block_size(const LoraAlignBlockSizeArgs& args,
                                         const Context& context);

}  // namespace tessera
