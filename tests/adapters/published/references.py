"""What vLLM's own tests of its layers compare with, and the quantised numbers that they begin with.

Written for these tests, with torch alone. Matrices in float8_e4m3fn are widened to float32, and
multiplied there.
"""

from __future__ import annotations

from typing import Any

import torch

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max


def silu_and_mul(x: Any) -> Any:
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def silu_and_mul_in_float32(x: Any) -> Any:
    return silu_and_mul(x.float())


def torch_moe(
    a: Any,
    w1: Any,
    w2: Any,
    score: Any,
    topk: int,
    global_num_experts: int = -1,
    expert_map: Any = None,
) -> Any:
    """The experts in the type of `a`, one after the other, added up in float32."""
    # Of equal scores the first, which torch's topk promises nowhere, and gives on a GPU.
    scores = score.softmax(-1, dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    weights, ids = (each[:, :topk] for each in scores)
    if expert_map is not None:
        ids = expert_map[ids]
    output = torch.zeros(a.shape, dtype=torch.float32, device=a.device)
    for expert in range(len(w1)):
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        if len(tokens):
            y = silu_and_mul(a[tokens] @ w1[expert].T) @ w2[expert].T
            output.index_add_(0, tokens, y.float() * weights[tokens, slots, None])
    return output.to(a.dtype)


def _quantised(x: Any, axes: tuple[int, ...], smallest_scale: float) -> tuple[Any, Any]:
    """`x` in fp8 and its scales, one for all numbers along the axes, which have length 1 there."""
    # On a GPU torch multiplies by the reciprocal where it divides by a number of Python: scales
    # would be off by a bit, and quotients of bfloat16 that are ties would be none.
    largest = torch.tensor(_LARGEST, device=x.device)
    scales = (x.float().abs().amax(axes, keepdim=True) / largest).clamp(min=smallest_scale)
    # Without the limits a quotient past the largest number would become NaN.
    return (x.float() / scales).clamp(-_LARGEST, _LARGEST).to(_FP8), scales


def quantised_tokens(x: Any, *, use_per_token_if_dynamic: bool) -> tuple[Any, Any]:
    """`x` [T, N] in fp8, and a scale for each token, [T, 1]."""
    assert use_per_token_if_dynamic
    return _quantised(x, (-1,), smallest_scale=1 / (512 * _LARGEST))


def quantised_groups(x: Any, group_size: int) -> tuple[Any, Any]:
    """`x` [T, N] in fp8, and the scales of its groups, [T, N / group_size]."""
    groups, scales = _quantised(x.unflatten(-1, (-1, group_size)), (-1,), 1e-10 / _LARGEST)
    return groups.flatten(-2), scales.squeeze(-1)


def _quantised_blocks(matrices: Any, block_shape: list[int]) -> tuple[Any, Any]:
    """Matrices in fp8, and the scales of their blocks, of which there are whole ones only."""
    rows, columns = block_shape
    blocks = matrices.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    values, scales = _quantised(blocks, (-3, -1), 1e-4 / _LARGEST)
    return values.reshape(matrices.shape), scales.squeeze((-3, -1))


def make_test_weights(
    num_experts: int,
    intermediate_size: int,
    hidden_size: int,
    dtype: Any,
    quant_dtype: Any,
    *,
    per_act_token_quant: bool,
    block_shape: list[int],
) -> tuple[Any, ...]:
    """For each of the two products random weights, the same in fp8, and the scales of blocks."""
    assert quant_dtype == _FP8
    assert not per_act_token_quant
    made: list[Any] = []
    for rows, columns in (2 * intermediate_size, hidden_size), (hidden_size, intermediate_size):
        weights = torch.randn((num_experts, rows, columns), dtype=dtype) / 15
        made += [weights, *_quantised_blocks(weights, block_shape)]
    return tuple(made)


def product_of_blocks(
    a: Any, b: Any, a_scales: Any, b_scales: Any, block_shape: list[int], *, output_dtype: Any
) -> Any:
    """`a` [T, K] times `b` [N, K] transposed: scales [T, K / columns], [N / rows, K / columns].

    The scales are applied before the sum rather than to the sum over a block. That differs by
    float32's rounding alone.
    """
    rows, columns = block_shape
    wide_a = a.float() * a_scales.repeat_interleave(columns, -1)
    wide_b = b.float() * b_scales.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return (wide_a @ wide_b.T).to(output_dtype)


def product_of_blocks_in_float32(
    a: Any, b: Any, a_scales: Any, b_scales: Any, block_shape: list[int], *, output_dtype: Any
) -> Any:
    """The same, but the first product of an expert stays in float32.

    The test widens `a` to float32 for the first product only. It needs the second one in
    `output_dtype`, as it assigns that to elements of its output.
    """
    dtype = torch.float32 if a.dtype == torch.float32 else output_dtype
    return product_of_blocks(a, b, a_scales, b_scales, block_shape, output_dtype=dtype)
