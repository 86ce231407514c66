"""How `fused_experts` computes the experts of a module of transformers, or why it cannot.

transformers describes a module by flags, an activation `act_fn` and a gate `_apply_gate`, which
models override. A gate is recognised by what it computes: it gets a grid of pairs of gate and up
projections in float64, from which its alpha, beta and limit are measured, as their names differ
among models; it must then agree with the formula on all pairs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional
from transformers.integrations.finegrained_fp8 import FP8Experts

FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
BIASES = ("gate_up_proj_bias", "up_proj_bias", "down_proj_bias")
_FP8_SCALES = (
    *(f"{name}_scale_inv" for name in WEIGHTS),
    "gate_up_proj_activation_scale",
    "down_proj_activation_scale",
)

# By the activation's name in `fused_experts`; without a gate, the name ends in `_no_mul`.
_Elementwise = Callable[[torch.Tensor], torch.Tensor]
_GATED: dict[str, _Elementwise] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
}
_UNGATED = _GATED | {"relu2": lambda z: functional.relu(z).square()}

# The evaluation error that the contract of `fused_experts` allows an activation: 8 u.
_TOLERANCE = 8 * 2.0**-24
# The largest is far above any limit in use; its powers in the activations are finite in float64.
_MAGNITUDES = [1.37 * 2.0**exponent for exponent in range(-12, 13)] + [1e6, 1e9, 1e15]
_SMALL = 2.0**-10
_LARGE = 2.0**60


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_in_graphs(function: _Function) -> _Function:
    """Let compiled code call a function while it is traced, and keep the result as a constant.

    The arguments must be numbers, strings or data types: older releases of torch pass on no others.
    """
    marked: _Function = torch.compiler.assume_constant_result(function)
    return marked


class Form(NamedTuple):
    """The arguments of `fused_experts` that stand for a module's activation and gate."""

    activation: str
    swiglu_alpha: float | None = None
    swiglu_beta: float | None = None
    swiglu_limit: float | None = None


# For each module its form, or why it has none, and the facts that this was found from.
_known: WeakKeyDictionary[torch.nn.Module, tuple[Any, Form | str]] = WeakKeyDictionary()


def form_of(module: torch.nn.Module) -> Form | str:
    """The form of a module that dispatches its experts, or the reason why it has none."""
    # torch 2.11 and older pass on no module as a constant, but its id, which then guards the graph.
    return _form_at(id(module))


def module_at(address: int) -> Any:
    """The module whose `id` is given."""
    return ctypes.cast(address, ctypes.py_object).value


@constant_in_graphs
def _form_at(address: int) -> Form | str:
    module = module_at(address)
    gate = module._apply_gate
    numbers = [value for value in vars(module).values() if isinstance(value, (int, float))]
    facts = (getattr(gate, "__func__", gate), getattr(module, "act_fn", None), numbers)
    known = _known.get(module)
    if known is None or known[0] != facts:
        known = _known[module] = (facts, _find_form(module))
    return known[1]


def _find_form(module: Any) -> Form | str:
    if getattr(module, "has_post_expert_norm", False):
        return "it normalises each expert's output"
    tensors = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    scales = _FP8_SCALES if isinstance(module, FP8Experts) else ()
    if unknown := sorted(set(tensors) - {*WEIGHTS, *BIASES, *scales}):
        return f"fused_experts has no argument for its {', '.join(unknown)}"
    try:
        with torch.no_grad():
            form = _gated_form(module) if module.has_gate else _ungated_form(module.act_fn)
    except Exception as error:  # a model's own code, called with a tensor that it may not expect
        return f"its activation cannot be probed: {type(error).__name__}: {error}"
    if form is not None:
        return form
    own_gate = module.has_gate and module._apply_gate.__qualname__ != "_default_apply_gate"
    name = module._apply_gate.__qualname__ if own_gate else type(module.act_fn).__name__
    layout = "" if module.is_concatenated or not module.has_gate else " of interleaved rows"
    return f"fused_experts has no activation that computes its {name}{layout}"


def _ungated_form(act_fn: _Elementwise) -> Form | None:
    z = _grid()
    found = act_fn(z)
    for name, function in _UNGATED.items():
        expected = function(z)
        if _agrees(found, expected, z.abs() + expected.abs()):
            return Form(f"{name}_no_mul")
    return None


def _gated_form(module: Any) -> Form | None:
    def gate(z: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        if module.is_concatenated:
            rows = torch.cat((z, m), -1)
        else:
            rows = torch.stack((z, m), -1).flatten(-2)
        result: torch.Tensor = module._apply_gate(rows)
        return result

    z, m = torch.meshgrid(_grid(), _grid(), indexing="ij")
    found = gate(z, m)
    if found.shape != z.shape:
        return None
    if module.is_concatenated:
        for name, function in _GATED.items():
            expected = function(z) * m
            if _agrees(found, expected, (z * m).abs() + expected.abs()):
                return Form(name)
    measured = _measured(gate)
    if measured is None:
        return None
    alpha, beta, limit = measured
    up = m.clamp(-limit, limit) + beta
    clamped = z.clamp(max=limit)
    expected = clamped * torch.sigmoid(alpha * clamped) * up
    if not _agrees(found, expected, (clamped * up).abs() + expected.abs()):
        return None
    name = "swigluoai_uninterleave" if module.is_concatenated else "swigluoai"
    return Form(name, alpha, beta, limit)


def _measured(
    gate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[float, float, float] | None:
    """Alpha, beta and limit, if the gate is min(z, limit) sigmoid(alpha z) (clamp(m) + beta).

    A gate of another formula gives numbers that mean nothing, or none.
    """
    up = torch.tensor([[0.0, _SMALL, _LARGE]], dtype=torch.float64, device="cpu")
    without, small, large = gate(torch.full_like(up, _SMALL), up)[0].tolist()
    slope = (small - without) / _SMALL  # z sigmoid(alpha z), at z = _SMALL
    share = slope / _SMALL
    if not 0.0 < share < 1.0:
        return None
    beta = without / slope
    limit = large / slope - beta
    alpha = math.log(share / (1.0 - share)) / _SMALL
    if limit > _LARGE / 2:
        limit = math.inf
    return (alpha, beta, limit) if limit > 0.0 and math.isfinite(beta) else None


def _grid() -> torch.Tensor:
    magnitudes = torch.tensor(_MAGNITUDES, dtype=torch.float64, device="cpu")
    return torch.cat((-magnitudes.flip(0), magnitudes.new_zeros(1), magnitudes))


def _agrees(found: torch.Tensor, expected: torch.Tensor, terms: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool(
        ((found - expected).abs() <= _TOLERANCE * terms).all()
    )
