"""SGLang's expert computation, served by `fused_experts`.

The function behind SGLang's Triton backend, and behind its ops for `torch.compile`. It has the
parameters and meaning of SGLang's, of all its versions together. A call that Tessera cannot serve
raises TypeError, ValueError or NotImplementedError before anything is written. The workspace of
`fused_experts` comes from torch, and under the capture of a CUDA graph from the graph's pool.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

import tessera
from tessera._engine_router import engine_names, refuse
from tessera._plain_tensor import (
    check_float,
    check_inplace,
    check_plain,
    check_same_dtype,
    check_tensor,
)

NAME = "fused_experts_impl"
# Where it is from SGLang 0.5.13 on, and before.
MODULES = (
    "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe",
    "sglang.srt.layers.moe.fused_moe_triton.fused_moe",
)

_INPUTS = ("hidden_states", "w1", "w2", "topk_weights", "topk_ids")
_QUANTISATION = (
    "use_fp8_w8a8",
    "use_int8_w8a8",
    "use_int8_w8a16",
    "use_int4_w4a16",
    "per_channel_quant",
    "w1_scale",
    "w2_scale",
    "w1_zp",
    "w2_zp",
    "a1_scale",
    "a2_scale",
    "block_shape",
)
# The parameters that a version was the first known to have. A version has those of all before, in
# an order of its own; one with others is left alone.
GENERATIONS: dict[str, tuple[str, ...]] = {
    "0.4.10": (
        *_INPUTS,
        "inplace",
        "activation",
        "apply_router_weight_on_input",
        *_QUANTISATION,
        "no_combine",
        "routed_scaling_factor",
    ),
    "0.5.5": ("b1", "b2", "gemm1_alpha", "gemm1_limit", "filter_expert"),
    "0.5.9": ("is_gated",),
    "0.5.13": ("swiglu_limit",),
    "0.5.18": ("gate_up_interleaved", "a1_q", "fuse_swiglu_interleaved"),
    "0.5.23": ("defer_sum", "no_combine_keep_router_weight"),
}
_KNOWN = frozenset(name for names in GENERATIONS.values() for name in names)

_SYMMETRIC_MEMORY = "sglang.srt.distributed.device_communicators.pynccl_allocator"


def parameters_of(names: Sequence[str]) -> tuple[str, ...]:
    """The parameters of a function that has these names, if all are known; else the oldest's."""
    is_known = _KNOWN.issuperset(names) and set(names).issuperset(GENERATIONS["0.4.10"])
    return tuple(names) if is_known else GENERATIONS["0.4.10"]


def _activation(
    name: str,
    is_gated: bool,
    gemm1_alpha: float | None,
    gemm1_limit: float | None,
    swiglu_limit: float | None,
    gate_up_interleaved: bool,
) -> dict[str, Any]:
    """The activation as `fused_experts` takes it."""
    if name != "silu" or not is_gated:
        limits = {"gemm1_limit": gemm1_limit, "swiglu_limit": swiglu_limit}
        refuse(NAME, gemm1_alpha=gemm1_alpha, **limits)
        return {"activation": name if is_gated else f"{name}_no_mul"}
    if gemm1_alpha is not None:
        if gemm1_limit is None:
            raise ValueError(f"{NAME}: gemm1_limit: expected a number with gemm1_alpha, got None")
        return {
            "activation": "swigluoai" if gate_up_interleaved else "swigluoai_uninterleave",
            "swiglu_alpha": float(gemm1_alpha),
            "swiglu_beta": 1.0,
            "swiglu_limit": float(gemm1_limit),
        }
    refuse(NAME, gemm1_limit=gemm1_limit)  # which limits the gate after its activation
    if swiglu_limit is None:
        return {"activation": "silu"}
    return {
        "activation": "swigluoai_uninterleave",
        "swiglu_alpha": 1.0,
        "swiglu_beta": 0.0,
        "swiglu_limit": float(swiglu_limit),
    }


def _refuse_symmetric_memory() -> None:
    """Refuse to return a new tensor where SGLang takes it from memory that all ranks know."""
    module = sys.modules.get(_SYMMETRIC_MEMORY)
    is_enabled = getattr(module, "is_symmetric_memory_enabled", None)
    if is_enabled is not None and is_enabled():
        raise NotImplementedError(
            f"{NAME}: inplace: expected True with symmetric memory, got False"
        )


@engine_names(NAME, x="hidden_states", w13="w1", w13_bias="b1", w2_bias="b2")
def fused_experts_impl(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    b1: torch.Tensor | None = None,
    b2: torch.Tensor | None = None,
    inplace: bool = False,
    activation: str = "silu",
    is_gated: bool = True,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
    filter_expert: bool = True,
    swiglu_limit: float | None = None,
    gate_up_interleaved: bool = True,
    **unserved: object,
) -> torch.Tensor:
    """The experts of a layer that is not quantised.

    Args:
        hidden_states: float16 or bfloat16 [T, H]; on the host float32, too.
        w1: [E, N, H]: gate rows, then up rows.
        w2: [E, H, F].
        topk_weights: float16, bfloat16 or float32 [T, k].
        topk_ids: int32 or int64 [T, k]; ids that no expert here has, such as -1, add nothing.
        b1: [E, N].
        b2: [E, H].
        inplace: write to `hidden_states`, and return it.
        activation: "silu", "gelu" or "gelu_tanh"; "relu2" without a gate.
        is_gated: the activation has a gate.
        apply_router_weight_on_input: scale the first product; needs k = 1, no `b1` and no
            `routed_scaling_factor`.
        routed_scaling_factor: multiplies the output; None stands for 1.
        gemm1_alpha: of gpt-oss's activation, which "silu" is with it.
        gemm1_limit: likewise; not served without `gemm1_alpha`.
        filter_expert: some experts live elsewhere; not needed.
        swiglu_limit: limits gate and up projection of "silu".
        gate_up_interleaved: rows of gate and up projection alternate in gpt-oss's activation.
        unserved: of quantisation, and for other results than the sum; none is served.

    Returns:
        [T, H], of the type of `hidden_states`.
    """
    refuse(NAME, **unserved)
    if apply_router_weight_on_input:
        refuse(NAME, b1=b1)  # SGLang scales the bias, too
    check_plain(NAME, "hidden_states", hidden_states)
    check_float(NAME, "hidden_states", hidden_states)
    check_same_dtype(NAME, "w1", w1, "hidden_states", hidden_states)
    check_plain(NAME, "topk_ids", topk_ids)
    if inplace:
        check_inplace(NAME, hidden_states)
    else:
        _refuse_symmetric_memory()
    if routed_scaling_factor not in (None, 1.0):
        if apply_router_weight_on_input:
            refuse(NAME, routed_scaling_factor=routed_scaling_factor)
        check_tensor(NAME, "topk_weights", topk_weights)
        topk_weights = topk_weights.float() * routed_scaling_factor
    result: torch.Tensor = tessera.fused_experts(
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        w13_bias=b1,
        w2_bias=b2,
        apply_router_weight_on_input=apply_router_weight_on_input,
        **_activation(
            activation, is_gated, gemm1_alpha, gemm1_limit, swiglu_limit, gate_up_interleaved
        ),
    )
    return hidden_states.copy_(result) if inplace else result
