"""Calls of vLLM's experts in fp8 with scales per expert and per row, and what they should give."""

from __future__ import annotations

from typing import Any

import torch

import engine_experts
from experts_calls import E, K, T, random, routing
from fp8_calls import FP8, fp8_config, hold_to_contract

# No multiples of 128, as blocks would need.
H, F = 40, 24
# The axes of a weight whose elements share a scale.
KINDS = {"per expert": (1, 2), "per row": (2,)}
# Static scales. Many elements are beyond 448 of them, so that other scales give other outputs.
A1_SCALE, A2_SCALE = torch.tensor(1 / 512), torch.tensor([1 / 256])


def with_scale(values: Any, scale: Any) -> Any:
    return (values.float() / scale.float()).clamp(-448, 448).to(FP8)


def scale_over(values: Any, axes: Any) -> Any:
    return values.float().abs().amax(axes, keepdim=True) / 448


def requantised(values: Any, scale: Any) -> Any:
    """What is left of values with a scale, or if that is None with one for each row."""
    scale = scale_over(values, -1) if scale is None else scale
    return with_scale(values, scale).double() * scale.double()


def row_layer(
    kind: str,
    *,
    dtype: Any = torch.bfloat16,
    num_rows: int = 2 * F,
    top_k: int = K,
    num_ids: int = E,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a call with `hidden_states` in 16 bits, and the scales of its weights."""
    tensors, scales = {}, {}
    for name, shape in {"w1": (E, num_rows, H), "w2": (E, H, F)}.items():
        # Rows of different sizes, so that each scale matters.
        sizes = random(*shape[:2], 1, dtype=torch.float32, seed=1).exp() / 8
        weights = random(*shape, dtype=torch.float32) * sizes
        scale = scale_over(weights, KINDS[kind])
        tensors[name] = with_scale(weights, scale)
        scales[f"{name}_scale"] = scale.flatten() if kind == "per expert" else scale
    hidden_states = random(T, H, dtype=dtype)
    return {"hidden_states": hidden_states, **tensors, **routing(top_k, num_ids)}, scales


def row_config(scales: dict[str, Any], **changes: Any) -> Any:
    return fp8_config(scales, block_shape=None, **changes)


def judge_rows(
    found: Any,
    call: dict[str, Any],
    scales: dict[str, Any],
    x_scale: Any = None,
    a2_scale: Any = None,
    *,
    weights_on: str = "output",
    **options: Any,
) -> None:
    """Hold an output to the layer in float64, with the same quantisation, and to the contract."""
    x, w1, w2, *routed = call.values()
    w1_scale, w2_scale = (scale.double().reshape(E, -1, 1) for scale in scales.values())
    exact = engine_experts.compute(
        x.double() * x_scale.double() if x.dtype == FP8 else requantised(x, x_scale),
        w1.double() * w1_scale,
        w2.double() * w2_scale,
        *routed,
        weights_on=weights_on,
        requantise=lambda a: requantised(a, a2_scale),
        **options,
    )
    assert (found.double() - exact).norm() < 0.01 * exact.norm()
    given = {"x_scale": x_scale, "intermediate_scale": a2_scale}
    hold_to_contract(found, call, scales, weights_on=weights_on, **given, **options)
