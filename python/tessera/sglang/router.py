"""The functions of SGLang's `topk.py`, served by `select_experts`.

A call that Tessera cannot serve raises TypeError, ValueError or NotImplementedError before anything
is written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tessera._engine_router import engine_names, refuse, refuse_single_experts, select_new
from tessera._plain_tensor import check_plain

MODULE = "sglang.srt.layers.moe.topk"

# SGLang's names of the scoring functions.
_SCORINGS = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrtsoftplus": "sqrt_softplus"}

_TOKENS = ("hidden_states", "gating_output")
_CHOICE = ("topk", "renormalize")
_GROUPS = ("num_expert_group", "topk_group", "num_fused_shared_experts", "routed_scaling_factor")
_PADDED = ("num_token_non_padded", "expert_location_dispatch_info")
_SCALED = "apply_routed_scaling_factor_on_output"
# SGLang's names of the arguments, by Tessera's.
_NAMES = {
    "router_logits": "gating_output",
    "top_k": "topk",
    "scoring": "scoring_func",
    "num_valid_tokens": "num_token_non_padded",
}


class Form(NamedTuple):
    """The parameters of a function in some versions.

    scales_always: the factor is applied also without `renormalize`.
    renormalizes: a function with a bias respects `renormalize`, on every path of SGLang.
    """

    parameters: tuple[str, ...]
    scales_always: bool = False
    renormalizes: bool = False


_GROUPED = (*_TOKENS, *_CHOICE, *_GROUPS)
_BIASED = (*_TOKENS, "correction_bias", *_CHOICE, *_GROUPS)
# From SGLang 0.4.10, 0.5.5 and 0.5.23 on.
FORMS: dict[str, tuple[Form, ...]] = {
    "fused_topk": (
        Form((*_TOKENS, *_CHOICE, *_PADDED)),
        Form(
            (
                *_TOKENS,
                *_CHOICE,
                "correction_bias",
                "scoring_func",
                "routed_scaling_factor",
                _SCALED,
                "num_fused_shared_experts",
                "packed_out",
                "num_token_non_padded",
            )
        ),
    ),
    "grouped_topk": (
        Form((*_GROUPED, *_PADDED)),
        Form((*_GROUPED, *_PADDED, _SCALED)),
        Form((*_GROUPED, _SCALED, "scoring_func"), scales_always=True),
    ),
    "biased_grouped_topk": (
        Form((*_BIASED, *_PADDED)),
        Form((*_BIASED, *_PADDED, _SCALED)),
        Form((*_BIASED, _SCALED), scales_always=True, renormalizes=True),
    ),
}


def _factor(factor: float | None, is_applied: bool | None) -> float:
    return factor if is_applied and factor is not None else 1.0


def _valid_tokens(op: str, num_token_non_padded: torch.Tensor | None) -> torch.Tensor | None:
    if num_token_non_padded is None:
        return None
    check_plain(op, "num_token_non_padded", num_token_non_padded)
    if num_token_non_padded.numel() != 1:
        raise ValueError(
            f"{op}: num_token_non_padded: expected 1 element, got {num_token_non_padded.numel()}"
        )
    return num_token_non_padded.reshape(1)


def _scoring(function: str, name: str) -> str:
    if name not in _SCORINGS:
        raise ValueError(
            f"{function}: scoring_func: expected one of {', '.join(_SCORINGS)}, got {name!r}"
        )
    return _SCORINGS[name]


@engine_names("fused_topk", **_NAMES)
def fused_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    correction_bias: torch.Tensor | None = None,
    scoring_func: str = "softmax",
    routed_scaling_factor: float | None = None,
    apply_routed_scaling_factor_on_output: bool | None = False,
    num_fused_shared_experts: int = 0,
    packed_out: torch.Tensor | None = None,
    num_token_non_padded: torch.Tensor | None = None,
    expert_location_dispatch_info: object = None,
    *,
    form: Form,
) -> tuple[torch.Tensor, ...]:
    """Choose among all experts.

    Args:
        hidden_states: [T, ...]; only its number of tokens matters.
        gating_output: float16, bfloat16 or float32 [T, E].
        topk: experts per token.
        renormalize: divide the weights of a token by their sum.
        correction_bias: [E], for the choice alone; not served for softmax, which ignores it.
        scoring_func: "softmax" or "sigmoid".
        routed_scaling_factor: multiplies the weights of sigmoid, if
            `apply_routed_scaling_factor_on_output`.
        apply_routed_scaling_factor_on_output: see there.
        num_fused_shared_experts: not served; 0.
        packed_out: not served; None.
        num_token_non_padded: int32, one element: later tokens get ids -1 and weights 0.
        expert_location_dispatch_info: not served; None.
        form: the version's.

    Returns:
        topk_weights float32 [T, k] and topk_ids int32 [T, k].
    """
    is_softmax = scoring_func == "softmax"
    refuse(
        "fused_topk",
        num_fused_shared_experts=num_fused_shared_experts,
        packed_out=packed_out,
        expert_location_dispatch_info=expert_location_dispatch_info,
        correction_bias=correction_bias if is_softmax else None,
    )
    is_scaled = apply_routed_scaling_factor_on_output and not is_softmax
    return select_new(
        "fused_topk",
        hidden_states,
        gating_output,
        topk,
        scoring=_scoring("fused_topk", scoring_func),
        renormalize=renormalize,
        correction_bias=correction_bias,
        routed_scaling_factor=_factor(routed_scaling_factor, is_scaled),
        num_valid_tokens=_valid_tokens("fused_topk", num_token_non_padded),
    )


@engine_names("grouped_topk", **_NAMES)
def grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float | None = None,
    num_token_non_padded: torch.Tensor | None = None,
    expert_location_dispatch_info: object = None,
    apply_routed_scaling_factor_on_output: bool | None = False,
    scoring_func: str = "softmax",
    correction_bias: torch.Tensor | None = None,
    *,
    form: Form,
) -> tuple[torch.Tensor, ...]:
    """Choose among the experts of the best groups; `fused_topk` has the arguments.

    Args:
        hidden_states: see `fused_topk`; so are all that are not listed.
        gating_output: see there.
        topk: see there.
        renormalize: see there.
        num_expert_group: groups of neighbouring experts.
        topk_group: groups of a token that stay: those with the largest score, or with a bias with
            the largest sum of two.
        num_fused_shared_experts: see there.
        routed_scaling_factor: see there.
        num_token_non_padded: see there.
        expert_location_dispatch_info: see there.
        apply_routed_scaling_factor_on_output: see there.
        scoring_func: see there.
        correction_bias: [E], for the choice alone.
        form: the version's.

    Returns:
        topk_weights float32 [T, k] and topk_ids int32 [T, k].
    """
    refuse(
        "grouped_topk",
        num_fused_shared_experts=num_fused_shared_experts,
        expert_location_dispatch_info=expert_location_dispatch_info,
    )
    is_scaled = apply_routed_scaling_factor_on_output and (renormalize or form.scales_always)
    return select_new(
        "grouped_topk",
        hidden_states,
        gating_output,
        topk,
        scoring=_scoring("grouped_topk", scoring_func),
        renormalize=renormalize,
        correction_bias=correction_bias,
        num_expert_group=num_expert_group,
        topk_group=topk_group,
        routed_scaling_factor=_factor(routed_scaling_factor, is_scaled),
        num_valid_tokens=_valid_tokens("grouped_topk", num_token_non_padded),
    )


@engine_names("biased_grouped_topk", **_NAMES)
def biased_grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    correction_bias: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    *,
    form: Form,
    **others: Any,
) -> tuple[torch.Tensor, ...]:
    """Choose by sigmoid and bias among the experts of the best groups, as `grouped_topk`."""
    if not renormalize and not form.renormalizes:
        raise NotImplementedError(
            "biased_grouped_topk: renormalize: expected True in this version, which ignores it in "
            "some cases, got False"
        )
    refuse_single_experts("biased_grouped_topk", gating_output, num_expert_group)
    return grouped_topk(
        hidden_states,
        gating_output,
        topk,
        renormalize,
        num_expert_group,
        topk_group,
        scoring_func="sigmoid",
        correction_bias=correction_bias,
        form=form,
        **others,
    )


_SERVE: dict[str, Callable[..., Any]] = {
    "fused_topk": fused_topk,
    "grouped_topk": grouped_topk,
    "biased_grouped_topk": biased_grouped_topk,
}


def serving(name: str, parameters: Sequence[str]) -> tuple[tuple[str, ...], Callable[..., Any]]:
    """The known parameters of a function that has these, and what serves it.

    Parameters that no version is known to have give those of the newest.
    """
    *_, newest = forms = FORMS[name]
    form = next((each for each in forms if each.parameters == tuple(parameters)), newest)
    return form.parameters, functools.partial(_SERVE[name], form=form)
