"""Which of vLLM's experts in fp8 `fused_experts` serves: scales of blocks of 128 x 128.

Others stay vLLM's own: scales per tensor, channel or token, static ones of activations, and on GPUs
that the kernels for fp8 are not tuned for, all of them.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera._engine_router import refuse
from tessera._plain_tensor import check_tensor

FP8 = torch.float8_e4m3fn

_BLOCK_SHAPE = (128, 128)
_TUNED = (9, 0)


def check_block_shape(op: str, block_shape: object) -> None:
    """Refuse scales that are not of blocks of 128 x 128.

    Raises:
        NotImplementedError: it has another shape, or None.
    """
    # An array has no truth value, so that it may not be compared.
    if not isinstance(block_shape, (list, tuple)) or tuple(block_shape) != _BLOCK_SHAPE:
        raise NotImplementedError(
            f"{op}: block_shape: expected [128, 128] for {FP8}, got {block_shape}"
        )


def check_device(op: str, name: str, tensor: Any) -> None:
    """Refuse a tensor on a GPU that the kernels for fp8 are not tuned for.

    Raises:
        NotImplementedError: it is on one.
        TypeError: it is no tensor.
    """
    check_tensor(op, name, tensor)
    if not tensor.is_cuda:
        return
    major, minor = torch.cuda.get_device_capability(tensor.device)
    if (major, minor) != _TUNED:
        raise NotImplementedError(
            f"{op}: {name}: expected a GPU of compute capability 9.0 for {FP8}, got {major}.{minor}"
        )


def check_not_fp8(op: str, w1: Any, setting: str, expected: object, got: object) -> None:
    """Refuse weights in fp8 of a call whose setting says that they are not quantised.

    Raises:
        ValueError: they are.
    """
    if getattr(w1, "dtype", None) == FP8:
        raise ValueError(f"{op}: {setting}: expected {expected}, as w1 is {FP8}, got {got}")


def is_fp8(op: str, config: Any) -> bool:
    """Whether a FusedMoEQuantConfig is of fp8, rather than of no quantisation.

    Raises:
        NotImplementedError: it is of another quantisation, or of a kind of fp8 that is not served.
        TypeError: it lacks scales.
    """
    dtype = getattr(config, "quant_dtype", None)
    if dtype not in (None, FP8):
        raise NotImplementedError(f"{op}: quant_dtype: expected None or {FP8}, got {dtype}")
    # A config of older versions names no type of the weights: it is that of the activations.
    weights = getattr(config, "weight_quant_dtype", dtype)
    if weights != dtype:
        raise NotImplementedError(
            f"{op}: weight_quant_dtype: expected {dtype}, as quant_dtype is, got {weights}"
        )
    if dtype is None:
        return False
    check_block_shape(op, config.block_shape)
    refuse(op, a1_scale=config.a1_scale, a2_scale=config.a2_scale)
    check_device(op, "w1_scale", config.w1_scale)
    return True


def scales_of_weights(
    op: str,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: Any,
    w2_scale: Any,
) -> dict[str, torch.Tensor]:
    """The scales of blocks, as arguments of `fused_experts`.

    vLLM's kernels take scales in any order, such as the columns first that DeepGEMM needs:
    `fused_experts` gets a copy of such.

    Raises:
        TypeError: a weight has another data type, or a scale is no tensor.
        ValueError: a weight has not 3 axes, or scales have another shape, such as those of rows.
        NotImplementedError: a block has rows of gate and of up, as vLLM counts blocks.
    """
    for name, weight in (("w1", w1), ("w2", w2)):
        check_tensor(op, name, weight)
        if weight.dtype != FP8:
            raise TypeError(f"{op}: {name}.dtype: expected {FP8}, got {weight.dtype}")
        if weight.dim() != 3:
            raise ValueError(f"{op}: {name}: expected 3 axes, got {weight.dim()}")
    # vLLM counts blocks over all rows of w1, `fused_experts` anew from the first row of up. Where F
    # is a multiple of 128, these are the same blocks. For others even the shapes may be equal.
    num_rows, intermediate_size = w1.shape[1], w2.shape[-1]
    if num_rows == 2 * intermediate_size and intermediate_size % 128:
        raise NotImplementedError(
            f"{op}: w2: expected a last axis of a multiple of 128 with scales of blocks and a "
            f"gate, got shape {list(w2.shape)}"
        )
    # Of other shapes `fused_experts` would take some, for scales per expert or row.
    for name, weight, scale in (("w1", w1, w1_scale), ("w2", w2, w2_scale)):
        check_tensor(op, f"{name}_scale", scale)
        num_experts, *lengths = weight.shape
        expected = [num_experts, *(-(-length // 128) for length in lengths)]
        if list(scale.shape) != expected:
            raise ValueError(
                f"{op}: {name}_scale.shape: expected {expected} for scales of blocks of 128 x 128, "
                f"got {list(scale.shape)}"
            )
    return {"w13_scale": w1_scale.contiguous(), "w2_scale": w2_scale.contiguous()}


def scale_of_input(op: str, a1q_scale: Any) -> torch.Tensor | None:
    """The scales of an input in fp8, or None, as an argument of `fused_experts`.

    `per_token_group_quant_fp8` of vLLM can lay them out with the columns first.

    Raises:
        TypeError: it is no tensor.
    """
    if a1q_scale is None:
        return None
    check_tensor(op, "a1q_scale", a1q_scale)
    scales: torch.Tensor = a1q_scale.contiguous()
    return scales
