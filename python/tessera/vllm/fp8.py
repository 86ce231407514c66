"""Which of vLLM's experts in fp8 `fused_experts` serves, and their scales as it takes them.

Weights have scales of blocks of 128 x 128, per expert, or per row. Blocks of other sizes stay
vLLM's own, and on GPUs that the kernels for fp8 are not tuned for, all experts in fp8 do.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera._engine_router import refuse
from tessera._plain_tensor import check_tensor

FP8 = torch.float8_e4m3fn

_BLOCK_SHAPE = (128, 128)
_TUNED = (9, 0)


def check_block_shape(op: str, block_shape: object, **without_blocks: object) -> None:
    """Refuse scales of blocks that are not 128 x 128; None stands for scales per expert or row.

    Args:
        op: vLLM's name of the op, for messages.
        block_shape: the rows and columns of a block.
        without_blocks: arguments that are served with None alone.

    Raises:
        NotImplementedError: it has another shape, or one of the other arguments is given.
    """
    if block_shape is None:
        return
    # An array has no truth value, so that it may not be compared.
    if not isinstance(block_shape, (list, tuple)) or tuple(block_shape) != _BLOCK_SHAPE:
        raise NotImplementedError(
            f"{op}: block_shape: expected None or [128, 128] for {FP8}, got {block_shape}"
        )
    refuse(op, **without_blocks)


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
    # Older versions have no weight_quant_dtype: their weights have the type of the activations.
    weights = getattr(config, "weight_quant_dtype", dtype)
    if weights != dtype:
        raise NotImplementedError(
            f"{op}: weight_quant_dtype: expected {dtype}, as quant_dtype is, got {weights}"
        )
    if dtype is None:
        return False
    scales = {"a1_scale": config.a1_scale, "a2_scale": config.a2_scale}
    check_block_shape(op, config.block_shape, **scales)
    check_device(op, "w1_scale", config.w1_scale)
    return True


def scales_of_weights(
    op: str,
    w1: torch.Tensor,
    w2: torch.Tensor,
    w1_scale: Any,
    w2_scale: Any,
    block_shape: object,
) -> dict[str, torch.Tensor]:
    """The scales of blocks, or where `block_shape` is None of experts or rows, for `fused_experts`.

    vLLM's kernels take scales in any order, such as the columns first that DeepGEMM needs:
    `fused_experts` gets a copy of such.

    Raises:
        TypeError: a weight has another data type, or a scale is no tensor.
        ValueError: a weight has not 3 axes, or scales have a shape of another kind.
        NotImplementedError: a block has rows of gate and of up, as vLLM counts blocks.
    """
    for name, weight in (("w1", w1), ("w2", w2)):
        check_tensor(op, name, weight)
        if weight.dtype != FP8:
            raise TypeError(f"{op}: {name}.dtype: expected {FP8}, got {weight.dtype}")
        if weight.dim() != 3:
            raise ValueError(f"{op}: {name}: expected 3 axes, got {weight.dim()}")
    if block_shape is None:
        return {
            "w13_scale": _of_experts_or_rows(op, "w1_scale", w1, w1_scale),
            "w2_scale": _of_experts_or_rows(op, "w2_scale", w2, w2_scale),
        }
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


def _of_experts_or_rows(op: str, name: str, weight: torch.Tensor, scale: Any) -> torch.Tensor:
    """Scales per expert as [E], or per row as [E, rows, 1].

    Raises:
        TypeError: they are no tensor.
        ValueError: they are neither, such as one for gate and one for up, which vLLM merges first.
    """
    check_tensor(op, name, scale)
    num_experts, num_rows, _ = weight.shape
    lengths = list(scale.shape)
    while len(lengths) > 1 and lengths[-1] == 1:
        lengths.pop()
    if lengths == [num_experts]:
        scales: torch.Tensor = scale.reshape(num_experts)
    elif lengths == [num_experts, num_rows]:
        scales = scale.reshape(num_experts, num_rows, 1)
    else:
        raise ValueError(
            f"{op}: {name}.shape: expected [{num_experts}] per expert or [{num_experts}, "
            f"{num_rows}, 1] per row where block_shape is None, got {list(scale.shape)}"
        )
    return scales.contiguous()


def scale_of_activations(
    op: str, name: str, scale: Any, block_shape: object
) -> torch.Tensor | None:
    """The scales of the input or of the intermediate, or None, as an argument of `fused_experts`.

    `per_token_group_quant_fp8` of vLLM can lay them out with the columns first. One number, which
    vLLM's kernels take with any number of axes where there are no blocks, becomes [1].

    Raises:
        TypeError: it is no tensor.
    """
    if scale is None:
        return None
    check_tensor(op, name, scale)
    is_number = block_shape is None and scale.numel() == 1
    scales: torch.Tensor = scale.reshape(1) if is_number else scale.contiguous()
    return scales
