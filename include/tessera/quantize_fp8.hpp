// quantize_fp8: activations or weights in float8_e4m3fn, with the scales that a scaled matrix
// product multiplies back in.
//
// THE CONTRACT
//
// Let T and H be the rows and columns of x. `group` cuts x into groups, each with one scale:
//
//   kTensor   all of x                                   scales [1]
//   kRow      each row: a token, or a channel            scales [T, 1]
//   k1x128    128 columns of a row                       scales [T, ceil(H / 128)]
//   k128x128  128 rows by 128 columns                    scales [ceil(T / 128), ceil(H / 128)]
//
// The last group of a row or a column holds what is left. Let float32(v) be the float32 nearest to
// the real number v, ties to even, subnormals kept, infinite where v is too large; and e4m3(v) the
// value of float8_e4m3fn nearest to v, ties to the even mantissa, subnormals kept, and 448 with the
// sign of v where |v| is larger, infinity included.
//
//  1. Without `scale`: amax is the largest |x| of the group's finite elements, 0 if there are none,
//     and the group's scale is s = float32(max(amax, float32(1e-10)) / 448).
//  2. With use_ue8m0 it is instead the smallest power of two that is s or more.
//  3. With `scale`, the group's scale is that element of it, and `scales` is a copy of `scale` to
//     the bit. Any value is allowed: division by 0, by a negative number, by an infinity or by a
//     NaN follows IEEE 754.
//  4. values[t][h] = e4m3(float32(x[t][h] / scale)): a division, not a product with a rounded
//     reciprocal. The sign of a zero is kept. Where the quotient is a NaN, the value is the
//     positive NaN, 0x7F.
//  5. So a NaN stays a NaN and an infinity becomes 448 with its sign; neither changes a scale. A
//     group of zeros becomes zeros with the scale of rule 1.
//  6. The op is a pure function of its inputs, to the last bit: on every backend, in every run, on
//     any number of threads. With kRow and k1x128 a token's output does not depend on the other
//     tokens. On the host a call computes in the default floating-point environment, whatever the
//     caller's is, and leaves the caller's as it was.
//  7. Elements between the rows of `values` are not written.
//  8. Any values of any input array are safe, even if another thread or stream changes them during
//     the call; the outputs then have unspecified values.
//  9. Bad arguments are refused before anything is written.
// 10. T = 0 and H = 0 are valid. Groups without elements have the scale of zeros.
//
// On a device the call is asynchronous on the context's stream: it does not synchronise, allocate
// device memory or read device data back, and may be captured into a graph. Calls from several
// threads or streams at once are correct if they share no output and no workspace. The paragraphs
// of align_block_size.hpp on contexts and programmatic dependent launch also apply.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/context.hpp"
#include "tessera/export.h"
#include "tessera/schema.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor_view.hpp"

namespace tessera {

/// Which elements share a scale.
enum class Fp8Group : std::int32_t { kTensor, kRow, k1x128, k128x128 };

/// In the order of Fp8Group.
inline constexpr const char* kFp8GroupNames[] = {"tensor", "row", "1x128", "128x128"};

struct QuantizeFp8Args {
  // Inputs. All arrays are aligned to their element size, on the context's device. The last axis of
  // an array whose rows may lie apart is contiguous, and the first steps over what it holds.
  TensorView x;      ///< [T, H]; float16, bfloat16 or float32; rows may lie apart
  TensorView scale;  ///< optional float32, contiguous, with the axes above or one

  // Outputs. Neither an output nor the workspace may overlap another array of the call.
  TensorView values;  ///< float8_e4m3fn [T, H]; rows may lie apart
  TensorView scales;  ///< float32, contiguous, with the axes above or one

  Fp8Group group = Fp8Group::kTensor;
  bool use_ue8m0 = false;  ///< not with `scale`
};

namespace quantize_fp8_schema {

enum Symbol : std::int8_t { kNumTokens, kHiddenSize, kNumScales };
inline constexpr const char* kSymbols[] = {"T", "H", "num_scales"};

using Args = QuantizeFp8Args;

inline constexpr DtypeSet kFloats = dtypes::kFloat16 | dtypes::kBfloat16 | dtypes::kFloat32;

inline constexpr Argument kArguments[] = {
    TESSERA_ARGUMENT(Args, x)
        .input(kFloats, axes(gives(kNumTokens), gives(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, scale).optional_input(dtypes::kFloat32, flat(exactly(kNumScales))),
    TESSERA_ARGUMENT(Args, values)
        .output(dtypes::kFloat8E4m3, axes(exactly(kNumTokens), exactly(kHiddenSize)))
        .with_rows_apart(),
    TESSERA_ARGUMENT(Args, scales).output(dtypes::kFloat32, flat(exactly(kNumScales))),
    TESSERA_ARGUMENT(Args, group).one_of(kFp8GroupNames),
    TESSERA_ARGUMENT(Args, use_ue8m0),
};

}  // namespace quantize_fp8_schema

inline constexpr Schema kQuantizeFp8Schema{"quantize_fp8", quantize_fp8_schema::kArguments,
                                           quantize_fp8_schema::kSymbols};

/// Bytes of workspace on the context's device that the call needs: none on the host. Reads numbers,
/// data types and shapes of `args`, and no array's memory.
TESSERA_API Status quantize_fp8_workspace_bytes(const QuantizeFp8Args& args, const Context& context,
                                                std::size_t* bytes);

/// Runs the op. Fails with kInvalidType (data types), kInvalidValue (values, shapes, devices,
/// strides, overlap, workspace), kUnsupported (the device cannot run it) or kRuntimeError, before
/// any write.
TESSERA_API Status quantize_fp8(const QuantizeFp8Args& args, const Context& context);

}  // namespace tessera
