"""The experts of vLLM in plain torch: what its stand-ins do without Tessera.

Written from vLLM's published formulas, in float64, so that the results are the exact ones to which
the served ones are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine_ops import calls


def _gated(name: str, limit: float | None, alpha: float, beta: float, g: Any) -> Any:
    if name == "swigluoai":  # gate and up alternate; vLLM's kernel has gpt-oss's parameters
        gate, up, limit, alpha, beta = g[..., ::2], g[..., 1::2], 7.0, 1.702, 1.0
    else:
        gate, up = g.chunk(2, -1)
    if name in ("gelu", "gelu_tanh"):
        approximate = "tanh" if name == "gelu_tanh" else "none"
        return torch.nn.functional.gelu(gate, approximate=approximate) * up
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if name == "silu":
        alpha, beta = 1.0, 0.0
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def activate(name: str, g: Any, limit: float | None, alpha: float, beta: float) -> Any:
    plain = {
        "silu_no_mul": torch.nn.functional.silu,
        "gelu_no_mul": torch.nn.functional.gelu,
        "gelu_tanh_no_mul": lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
        "relu2_no_mul": lambda g: torch.relu(g).square(),
        "swiglustep": lambda g: _gated("silu", 7.0, 1.0, 0.0, g),
    }
    return plain[name](g) if name in plain else _gated(name, limit, alpha, beta, g)


def compute(
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    activation: str = "silu",
    expert_map: Any = None,
    w1_bias: Any = None,
    w2_bias: Any = None,
    weights_on: str = "output",
    limit: float | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    requantise: Callable[[Any], Any] = lambda a: a,
) -> Any:
    """The layer's output, of the type of `hidden_states`.

    weights_on: what the router's weights multiply: "output", "input", or "nothing".
    requantise: gives what is left of activated elements.
    """
    calls.append("experts")
    x, weights, ids = hidden_states.double(), topk_weights.double(), topk_ids.long()
    output = torch.zeros_like(x)
    for token in range(len(x)):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            if expert_map is not None:
                expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
            if not 0 <= expert < len(w1):
                continue
            g = w1[expert].double() @ x[token]
            if w1_bias is not None:
                g = g + w1_bias[expert].double()
            if weights_on == "input":
                g = g * weights[token, slot]
            a = requantise(activate(activation, g, limit, alpha, beta))
            y = w2[expert].double() @ a
            if w2_bias is not None:
                y = y + w2_bias[expert].double()
            output[token] += y * weights[token, slot] if weights_on == "output" else y
    return output.to(hidden_states.dtype)


def implement(hidden_states: Any, *arguments: Any, inplace: bool = False, **options: Any) -> Any:
    """vLLM's `fused_experts_impl`, with the arguments that matter without quantisation."""
    on_input = options.pop("apply_router_weight_on_input")
    result = compute(
        hidden_states, *arguments, weights_on="input" if on_input else "output", **options
    )
    return hidden_states.copy_(result) if inplace else result


def apply(
    experts: Any,
    output: Any,
    hidden_states: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    activation: Any,
    expert_map: Any,
    workspaces: tuple[Any, Any],
    on_input: bool,
    limits: tuple[float | None, float, float],
) -> None:
    """vLLM's `TritonExperts.apply`, which writes to its workspaces."""
    for workspace in workspaces:
        workspace.zero_()
    limit, alpha, beta = limits
    result = compute(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation=getattr(activation, "value", activation),
        expert_map=expert_map,
        w1_bias=experts.quant_config.w1_bias,
        w2_bias=experts.quant_config.w2_bias,
        weights_on="nothing" if on_input else "output",
        limit=limit,
        alpha=alpha,
        beta=beta,
    )
    output.copy_(result)
