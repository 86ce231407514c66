"""Calls of vLLM's experts in fp8 with scales of blocks, and what they should give."""

from __future__ import annotations

from typing import Any

import torch

import engine_experts
import engine_ops
import tessera
from experts_calls import E, K, T, quant_config, random, routing

FP8 = torch.float8_e4m3fn
# The shapes of all scales differ.
H, F = 384, 128
SHAPES = {"w1": (E, 2 * F, H), "w2": (E, H, F)}


def quantised(values: Any, num_rows: int) -> tuple[Any, Any]:
    """Values in fp8, and the scales of their blocks of `num_rows` x 128."""
    blocks = values.float().unflatten(-1, (-1, 128)).unflatten(-3, (-1, num_rows))
    scales = blocks.abs().amax((-3, -1)) / 448
    return (blocks / scales[..., None, :, None]).reshape(values.shape).to(FP8), scales


def dequantised(values: Any, scales: Any, num_rows: int) -> Any:
    wide = scales.double().repeat_interleave(128, -1).repeat_interleave(num_rows, -2)
    return values.double() * wide


def fp8_layer(
    *, dtype: Any = torch.bfloat16, num_rows: int = 2 * F, top_k: int = K, num_ids: int = E
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a call with `hidden_states` in 16 bits, and the scales of its weights."""
    tensors, scales = {}, {}
    for name, shape in (SHAPES | {"w1": (E, num_rows, H)}).items():
        # Blocks of different sizes, so that each scale matters.
        sizes = random(shape[0], shape[1] // 128, shape[2] // 128, dtype=torch.float32, seed=1)
        sizes = sizes.exp().repeat_interleave(128, 1).repeat_interleave(128, 2) / 16
        weights = random(*shape, dtype=torch.float32) * sizes
        tensors[name], scales[f"{name}_scale"] = quantised(weights, 128)
    hidden_states = random(T, H, dtype=dtype)
    return {"hidden_states": hidden_states, **tensors, **routing(top_k, num_ids)}, scales


def quantised_input(call: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The call as vLLM's step before the experts leaves it, and the scales of its input."""
    hidden_states, scales = quantised(call["hidden_states"], 1)
    return call | {"hidden_states": hidden_states}, scales


def fp8_config(scales: dict[str, Any], **changes: Any) -> Any:
    blocks = {"quant_dtype": FP8, "weight_quant_dtype": FP8, "block_shape": [128, 128]}
    return quant_config(**blocks | scales | changes)


def judge(
    found: Any,
    call: dict[str, Any],
    scales: dict[str, Any],
    a1q_scale: Any = None,
    *,
    weights_on: str = "output",
    **options: Any,
) -> None:
    """Hold an output to the contract, and to the layer in float64 with dequantised weights."""
    x, w1, w2, *routed = call.values()
    limits = {name: options.pop(name) for name in ("limit", "alpha", "beta") if name in options}
    exact = engine_experts.compute(
        x.double() if a1q_scale is None else dequantised(x, a1q_scale, 1),
        dequantised(w1, scales["w1_scale"], 128),
        dequantised(w2, scales["w2_scale"], 128),
        *routed,
        weights_on=weights_on,
        **options,
        **limits,
    )
    # Quantising `x` and the intermediate moves an output by some 3%.
    assert (found.double() - exact).norm() < 0.06 * exact.norm()
    if limits:
        options["activation"] = "swigluoai_uninterleave"
        options |= {f"swiglu_{name}": value for name, value in limits.items()}
    hold_to_contract(found, call, scales, x_scale=a1q_scale, weights_on=weights_on, **options)


def hold_to_contract(
    found: Any, call: dict[str, Any], scales: dict[str, Any], *, weights_on: str, **options: Any
) -> None:
    """Hold an output to the contract, with the names that vLLM has for biases."""
    x, w1, w2, topk_weights, topk_ids = call.values()
    engine_ops.calls.clear()
    if "w1_bias" in options:
        options["w13_bias"] = options.pop("w1_bias")
    violations = tessera.fused_experts_contract_violations(
        x,
        w1,
        w2,
        torch.ones_like(topk_weights) if weights_on == "nothing" else topk_weights,
        topk_ids,
        found,
        w13_scale=scales["w1_scale"],
        w2_scale=scales["w2_scale"],
        apply_router_weight_on_input=weights_on == "input",
        **options,
    )
    assert violations == []
