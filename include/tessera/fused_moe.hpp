// fused_moe: a Mixture-of-Experts layer from the router's logits: select_experts, then
// fused_experts of its choice, in one call.
//
// THE CONTRACT
//
// Let G be the number of global experts: the length of expert_map, or E without a map.
//
//  1. If topk_weights and topk_ids are given, the call writes the bits that select_experts writes
//     for the same arguments and G experts.
//  2. output is that of fused_experts for these weights and ids, given or not, and the same other
//     arguments. An implementation writes the bits that fused_experts writes by the implementation
//     of the same name.
//  3. So the tokens that do not count (num_valid_tokens) have rows of +0, and a token's bits do not
//     depend on the other tokens wherever those of fused_experts do not.
//  4. Bad arguments are refused before anything is written; T = 0 is valid. A router with another
//     number of experts than G is refused: fused_experts alone would leave its pairs out.
//
// What else select_experts.hpp and fused_experts.hpp state of their ops holds here, too: any values
// of inputs are safe, and on a device the call is asynchronous and may be captured. There the
// kernels of both ops are launched one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/fused_experts.hpp"
#include "tessera/schema.hpp"
#include "tessera/select_experts.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

struct FusedMoeArgs {
  // Inputs, as the two ops take them.
  TensorView x;                 ///< [T, H]; float16, bfloat16 or float32; rows may lie apart
  TensorView w13;               ///< [E, N, H], of x's data type; rows apart or transposed
  TensorView w2;                ///< [E, H, F], of x's data type; rows apart or transposed
  TensorView router_logits;     ///< [T, G]; float16, bfloat16 or float32; rows may lie apart
  TensorView correction_bias;   ///< optional float32[G]: added to the scores for the choice alone
  TensorView num_valid_tokens;  ///< optional int32[1]: later tokens are padding
  TensorView expert_map;        ///< optional int32[G]: global expert -> row of w13, else remote
  TensorView w13_bias;          ///< optional [E, N], of x's data type; rows may lie apart
  TensorView w2_bias;           ///< optional [E, H], of x's data type; rows may lie apart

  // No output may overlap another array of the call.
  TensorView output;  ///< [T, H], of x's data type; rows may lie apart

  std::int64_t top_k = 0;  ///< 1 ... G, and at most what topk_group groups have
  Scoring scoring = Scoring::kSoftmax;
  bool renormalize = false;           ///< divide the weights of a token by their sum
  std::int64_t num_expert_group = 1;  ///< divides G
  std::int64_t topk_group = 1;        ///< groups that stay, 1 ... num_expert_group
  float routed_scaling_factor = 1;    ///< finite
  Activation activation = Activation::kSilu;
  bool apply_router_weight_on_input = false;  ///< needs top_k = 1
  bool batch_invariant = false;
  float swiglu_alpha = kNotGiven;  ///< of the two swigluoai alone, as the next two
  float swiglu_beta = kNotGiven;
  float swiglu_limit = kNotGiven;

  TensorView topk_weights;  ///< optional float32[T, k]: the choice, for those who record it
  TensorView topk_ids;      ///< optional int32[T, k]
};

namespace fused_moe_schema {

enum Symbol : std::int8_t {
  kNumTokens,
  kHiddenSize,
  kNumExperts,
  kNumRows,
  kIntermediateSize,
  kTopK,
  kNumGlobalExperts
};
inline constexpr const char* kSymbols[] = {"T", "H", "E", "N", "F", "k", "G"};

using Args = FusedMoeArgs;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, x)
        .input(kFloats, axes(gives(kNumTokens), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, w13)
        .input(kFloats, axes(gives(kNumExperts), exactly(kNumRows), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart_or_transposed(),
    TESSERA_ARGUMENT(Args, w2)
        .input(kFloats, axes(exactly(kNumExperts), exactly(kHiddenSize), gives(kIntermediateSize)))
        .with_dtype_of(0)
        .with_rows_apart_or_transposed(),
    TESSERA_ARGUMENT(Args, router_logits)
        .input(kFloats, axes(exactly(kNumTokens), exactly(kNumGlobalExperts)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, correction_bias)
        .optional_input(dtypes::kFloat32, axes(exactly(kNumGlobalExperts))),
    TESSERA_ARGUMENT(Args, num_valid_tokens).optional_input(dtypes::kInt32, flat(constantly(1))),
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
    TESSERA_ARGUMENT(Args, output)
        .output(kFloats, axes(exactly(kNumTokens), exactly(kHiddenSize)))
        .with_dtype_of(0)
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, top_k).between(1, kInt32Max).giving(kTopK),
    TESSERA_ARGUMENT(Args, scoring).one_of(kScoringNames),
    TESSERA_ARGUMENT(Args, renormalize),
    TESSERA_ARGUMENT(Args, num_expert_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, topk_group).between(1, kInt32Max),
    TESSERA_ARGUMENT(Args, routed_scaling_factor),
    TESSERA_ARGUMENT(Args, activation).one_of(kActivationNames),
    TESSERA_ARGUMENT(Args, apply_router_weight_on_input),
    TESSERA_ARGUMENT(Args, batch_invariant),
    TESSERA_ARGUMENT(Args, swiglu_alpha),
    TESSERA_ARGUMENT(Args, swiglu_beta),
    TESSERA_ARGUMENT(Args, swiglu_limit),
    TESSERA_ARGUMENT(Args, topk_weights)
        .optional_output(dtypes::kFloat32, axes(exactly(kNumTokens), exactly(kTopK))),
    TESSERA_ARGUMENT(Args, topk_ids)
        .optional_output(dtypes::kInt32, axes(exactly(kNumTokens), exactly(kTopK))),
};

}  // namespace fused_moe_schema

inline constexpr Schema kFusedMoeSchema{"fused_moe", fused_moe_schema::kArguments,
                                        fused_moe_schema::kSymbols};

/// Bytes of workspace on the context's device that the call needs: what the larger one of the two
/// ops needs, and 8 bytes for each token and slot. Reads numbers, data types and shapes of `args`,
/// and no array's memory.
TESSERA_API Status fused_moe_workspace_bytes(const FusedMoeArgs& args, const Context& context,
                                             std::size_t* bytes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status fused_moe(const FusedMoeArgs& args, const Context& context);

}  // namespace tessera
