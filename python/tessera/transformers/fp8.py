"""The scales of transformers' `FP8Experts` as arguments of `fused_experts`, or why it cannot.

Matrices are [N, K], gate rows before up rows. `block_size` None stands for one scale for each
matrix: [E, 1, 1], or [E, 2, 1] where gate and up have one each. Scales of blocks are [E, ceil(N /
rows), ceil(K / columns)]. A block may hold the last gate rows and the first up rows; in
`fused_experts` the up rows begin a block of their own.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera.transformers.forms import constant_in_graphs, module_at

FP8 = torch.float8_e4m3fn

_BLOCK = 128
# Older releases of torch lack the second, which counts exponents.
_SCALE_TYPES = tuple(
    getattr(torch, name) for name in ("float32", "float8_e8m0fnu") if hasattr(torch, name)
)


def scales_reason(module: Any) -> str | None:
    """Why `fused_experts` cannot apply the scales of experts in fp8; None if it can."""
    up, down = _weight_scales(module)
    for scale in (up, down):
        if scale.dtype not in _SCALE_TYPES:
            return f"its scales are {scale.dtype}"
    is_static = module.activation_scheme == "static"
    if module.block_size is None:
        if is_static and any(one.is_cuda for one in _activation_scales(module)):
            return "its static activation scales are on a GPU, where comparing them would wait"
        if is_static and not _share_activation_scales(id(module)):
            return "its experts have different static activation scales"
        return None
    rows, columns = module.block_size
    if (rows, columns) != (_BLOCK, _BLOCK):
        return f"its weights have scales of blocks of {rows} x {columns}"
    if is_static:
        return "its weights have scales of blocks, its activations static ones"
    num_rows = module.down_proj.shape[-1]
    if module.has_gate and num_rows % _BLOCK != 0:
        return f"a block of scales holds both gate and up rows, as there are {num_rows} of each"
    return None


def scales_of(module: Any) -> dict[str, torch.Tensor]:
    """The scales of experts in fp8 that `scales_reason` has no objection to, by argument."""
    up, down = (scale.float() for scale in _weight_scales(module))
    if module.block_size is None and up.shape[1] == 1:
        up, down = up.flatten(), down.flatten()  # one for each expert
    elif module.block_size is None:
        _, num_outputs, num_rows = module.down_proj.shape
        up = up.repeat_interleave(num_rows, dim=1)  # gate rows, then up rows
        down = down.expand(-1, num_outputs, 1).contiguous()
    scales = {"w13_scale": up, "w2_scale": down}
    if module.activation_scheme == "static":
        x_scale, intermediate_scale = _activation_scales(module)
        scales |= {"x_scale": x_scale[:1], "intermediate_scale": intermediate_scale[:1]}
    return scales


def _weight_scales(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    up = module.gate_up_proj_scale_inv if module.has_gate else module.up_proj_scale_inv
    return up, module.down_proj_scale_inv


def _activation_scales(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # Of the first product also where there is no gate.
    return module.gate_up_proj_activation_scale, module.down_proj_activation_scale


@constant_in_graphs
def _share_activation_scales(address: int) -> bool:
    """Whether all experts have the same static scales.

    Read at every call, as writes to `.data` leave no trace.
    """
    scales = _activation_scales(module_at(address))
    return all(torch.equal(one, one[:1].expand_as(one)) for one in scales)
