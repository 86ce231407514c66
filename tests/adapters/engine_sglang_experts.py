"""The experts of SGLang in plain torch: what its stand-ins do without Tessera."""

from __future__ import annotations

from typing import Any

import torch

import engine_experts
from engine_ops import calls


def _activation(
    name: str,
    is_gated: bool,
    alpha: float | None,
    limit: float | None,
    swiglu_limit: float | None,
    is_interleaved: bool,
) -> dict[str, Any]:
    """The activation by vLLM's names, which `engine_experts` has."""
    if not is_gated:
        return {"activation": f"{name}_no_mul"}
    if name == "silu" and alpha is not None:
        if is_interleaved:
            assert (alpha, limit) == (1.702, 7.0)  # as `engine_experts` has them
            return {"activation": "swigluoai"}
        limits = {"alpha": alpha, "beta": 1.0, "limit": limit}
        return {"activation": "swigluoai_uninterleave", **limits}
    return {"activation": name, "limit": swiglu_limit if name == "silu" else None}


def implement(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    b1: Any,
    b2: Any,
    inplace: bool,
    activation: str,
    is_gated: bool = True,
    apply_router_weight_on_input: bool,
    no_combine: bool,
    routed_scaling_factor: float | None,
    gemm1_alpha: float | None,
    gemm1_limit: float | None,
    swiglu_limit: float | None = None,
    gate_up_interleaved: bool = True,
) -> Any:
    """SGLang's `fused_experts_impl`, with the arguments that matter without quantisation."""
    if no_combine:
        calls.append("experts")
        return torch.zeros(*topk_ids.shape, hidden_states.shape[1], dtype=hidden_states.dtype)
    result = engine_experts.compute(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        w1_bias=b1,
        w2_bias=b2,
        weights_on="input" if apply_router_weight_on_input else "output",
        **_activation(
            activation, is_gated, gemm1_alpha, gemm1_limit, swiglu_limit, gate_up_interleaved
        ),
    )
    if routed_scaling_factor is not None:
        result = (result.double() * routed_scaling_factor).to(result.dtype)
    return hidden_states.copy_(result) if inplace else result
