"""The forward of experts modules over `fused_experts`, in the signature of transformers."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations.finegrained_fp8 import FP8Experts
from transformers.utils import logging

import tessera
from tessera.transformers.forms import FLAGS, constant_in_graphs, form_of
from tessera.transformers.fp8 import FP8, scales_of, scales_reason

_logger = logging.get_logger("tessera.transformers")

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_said: set[str] = set()

# What Tessera raises for calls outside the op's domain, before anything is written.
_REFUSALS = (NotImplementedError, TypeError, ValueError)


def experts_forward(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The experts of a module for the router's choice; eagerly if Tessera does not serve the call.

    Args:
        self: a module whose class transformers has decorated with `use_experts_implementation`.
        hidden_states: [T, H].
        top_k_index: int32 or int64 [T, k]; ids from `num_experts` on mark experts of other ranks.
        top_k_weights: [T, k].

    Returns:
        [T, H] of the data type of `hidden_states`.
    """
    form = form_of(self)
    reason = form if isinstance(form, str) else _weights_reason(self)
    if reason is None:
        reason = _call_reason(self, hidden_states, top_k_weights)
    if reason is None:
        try:
            return _fused(self, form, hidden_states, top_k_index, top_k_weights)
        except _REFUSALS as refusal:
            reason = str(refusal)
    _say(type(self).__name__, reason)
    eager: Callable[..., torch.Tensor] = inspect.unwrap(type(self).forward)
    return eager(self, hidden_states, top_k_index, top_k_weights)


def reason_unserved(module: torch.nn.Module) -> str | None:
    """Why calls of a module do not reach `fused_experts`, whatever its inputs; None if they do."""
    if not all(hasattr(module, flag) for flag in FLAGS):
        return f"{type(module).__name__} does not dispatch through transformers' ExpertsInterface"
    form = form_of(module)
    if isinstance(form, str):
        return form
    reason = _weights_reason(module)
    implementation = getattr(module.config, "_experts_implementation", None)
    if reason is None and implementation != "tessera":
        return f"its config has experts_implementation={implementation!r}"
    return reason


def _fused(
    module: Any,
    form: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    up, down = _products(module)
    biases = (None, None)
    if module.has_bias:
        biases = (
            module.gate_up_proj_bias if module.has_gate else module.up_proj_bias,
            module.down_proj_bias,
        )
    if module.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    scales = scales_of(module) if up.dtype == FP8 else {}
    return tessera.fused_experts(
        hidden_states,
        up,
        down,
        top_k_weights,
        top_k_index,
        activation=form.activation,
        w13_bias=biases[0],
        w2_bias=biases[1],
        swiglu_alpha=form.swiglu_alpha,
        swiglu_beta=form.swiglu_beta,
        swiglu_limit=form.swiglu_limit,
        **scales,
    )


def _products(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return (module.gate_up_proj if module.has_gate else module.up_proj, module.down_proj)


def _weights_reason(module: Any) -> str | None:
    weights, _ = _products(module)
    has_scales = weights.dtype == FP8 and isinstance(module, FP8Experts)
    if weights.dtype not in _DTYPES and not has_scales:
        return f"its weights are {weights.dtype}"
    place = weights.device.type
    if _runs_on(place, weights.dtype):
        return scales_reason(module) if has_scales else None
    kind = f"{weights.dtype} on" if any(_runs_on(place, other) for other in _DTYPES) else "on"
    return f"its weights are {kind} {place}, for which this build has no code"


def _call_reason(
    module: Any, hidden_states: torch.Tensor, top_k_weights: torch.Tensor
) -> str | None:
    weights, _ = _products(module)
    if weights.dtype not in (FP8, hidden_states.dtype):
        return f"its inputs are {hidden_states.dtype}, its weights {weights.dtype}"
    if torch.is_grad_enabled():
        inputs = (hidden_states, top_k_weights, *module.parameters())
        if any(tensor.requires_grad for tensor in inputs):
            return "autograd follows the call (torch.no_grad() and torch.inference_mode() avoid it)"
    return None


@constant_in_graphs
def _runs_on(device_type: str, dtype: torch.dtype) -> bool:
    """Whether some implementation of the op takes a data type on devices of a type of torch."""
    return _is_selected(device_type, dtype)


@constant_in_graphs
def _say(name: str, reason: str) -> None:
    message = f"{name} runs eagerly: {reason}"
    key = re.sub(r"\b\d+\b", "#", message)  # the same reason occurs with many sizes
    if key not in _said:
        _said.add(key)
        _logger.warning(message)


@functools.cache
def _is_selected(device_type: str, dtype: torch.dtype) -> bool:
    if device_type not in ("cpu", "cuda"):
        return False
    shape: dict[str, Any] = dict.fromkeys("THEFk", 1)
    shape |= {"activation": "silu", "dtype": dtype}
    found = tessera.explain("fused_experts", device=device_type, **shape)
    return any(implementation.selected for implementation in found)
