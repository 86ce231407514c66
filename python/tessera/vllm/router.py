"""vLLM's router ops and functions, served by `select_experts`.

Each has the name, parameters and meaning of vLLM's, of all its versions together, and writes to the
caller's tensors or returns new ones. A call that Tessera cannot serve raises TypeError, ValueError
or NotImplementedError before anything is written.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera._engine_router import (
    engine_names,
    refuse,
    refuse_single_experts,
    select_into,
    select_new,
)
from tessera._plain_tensor import check_tensor

COMPUTE_ROUTING = "FusedTopKRouter._compute_routing"

# The scores that the op `grouped_topk` computes itself, by its number of them.
_GROUPED_SIGMOID = 1
# vLLM's names of the scoring functions that its Python functions have.
_SCORINGS = ("softmax", "sigmoid")
# vLLM's names of the arguments, by Tessera's.
_NAMES = {"router_logits": "gating_output", "correction_bias": "e_score_correction_bias"}
_PYTHON_NAMES = {**_NAMES, "top_k": "topk", "scoring": "scoring_func"}
_GROUPED_OP_NAMES = {**_PYTHON_NAMES, "router_logits": "scores", "correction_bias": "bias"}


@engine_names("topk_softmax", **_NAMES)
def topk_softmax(
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    is_padding: torch.Tensor | None = None,
) -> None:
    """Choose by softmax; the bias is for the choice alone.

    Args:
        topk_weights: float32 [T, k].
        topk_ids: int32, uint32 or int64 [T, k].
        token_expert_indices: int32 [T, k]; (t, s) becomes s * T + t.
        gating_output: float16, bfloat16 or float32 [T, E].
        renormalize: divide the weights of a token by their sum, unless it is 0.
        e_score_correction_bias: [E].
        is_padding: bool [T]: tokens whose ids become -1.
    """
    check_tensor("topk_softmax", "token_expert_indices", token_expert_indices)
    select_into(
        "topk_softmax",
        gating_output,
        topk_weights,
        topk_ids,
        renormalize=renormalize,
        correction_bias=e_score_correction_bias,
        is_padding=is_padding,
        token_expert_indices=token_expert_indices,
    )


@engine_names("topk_sigmoid", **_NAMES)
def topk_sigmoid(
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    is_padding: torch.Tensor | None = None,
) -> None:
    """Choose by sigmoid, with the arguments of `topk_softmax` and a factor of the weights."""
    check_tensor("topk_sigmoid", "token_expert_indices", token_expert_indices)
    select_into(
        "topk_sigmoid",
        gating_output,
        topk_weights,
        topk_ids,
        scoring="sigmoid",
        renormalize=renormalize,
        correction_bias=e_score_correction_bias,
        routed_scaling_factor=routed_scaling_factor,
        is_padding=is_padding,
        token_expert_indices=token_expert_indices,
    )


@engine_names("topk_hash_softplus_sqrt", **_NAMES, topk_ids="topk_indices")
def topk_hash_softplus_sqrt(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: torch.Tensor | None = None,
    input_tokens: torch.Tensor | None = None,
    hash_indices_table: torch.Tensor | None = None,
    is_padding: torch.Tensor | None = None,
    bias_vl: torch.Tensor | None = None,
    image_sentinel_lo: int = 0,
) -> None:
    """Choose by the root of the softplus, as `topk_sigmoid` does.

    A table of experts by token, `hash_indices_table`, and a bias of image tokens, `bias_vl`, are
    not served; `input_tokens` and `image_sentinel_lo` only matter with them.
    """
    op = "topk_hash_softplus_sqrt"
    refuse(op, hash_indices_table=hash_indices_table, bias_vl=bias_vl)
    check_tensor(op, "token_expert_indices", token_expert_indices)
    select_into(
        op,
        gating_output,
        topk_weights,
        topk_indices,
        scoring="sqrt_softplus",
        renormalize=renormalize,
        correction_bias=e_score_correction_bias,
        routed_scaling_factor=routed_scaling_factor,
        is_padding=is_padding,
        token_expert_indices=token_expert_indices,
    )


@engine_names("grouped_topk", **_GROUPED_OP_NAMES)
def grouped_topk_op(
    scores: torch.Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    renormalize: bool,
    routed_scaling_factor: float,
    bias: torch.Tensor,
    scoring_func: int = 0,
) -> tuple[torch.Tensor, ...]:
    """The op `grouped_topk`: choose by sigmoid and bias, among the experts of the best groups.

    Args:
        scores: float16, bfloat16 or float32 [T, E]: logits.
        num_expert_group: groups of neighbouring experts.
        topk_group: groups of a token that stay.
        topk: experts per token.
        renormalize: divide the weights of a token by their sum.
        routed_scaling_factor: multiplies the weights.
        bias: [E], for the choice alone.
        scoring_func: 1; scores that the caller has computed, 0, are not served.

    Returns:
        topk_weights float32 [T, k] and topk_ids int32 [T, k].
    """
    if isinstance(scoring_func, bool) or scoring_func != _GROUPED_SIGMOID:
        raise NotImplementedError(
            f"grouped_topk: scoring_func: expected {_GROUPED_SIGMOID}, the sigmoid of logits, got "
            f"{scoring_func}"
        )
    refuse_single_experts("grouped_topk", scores, num_expert_group)
    return select_new(
        "grouped_topk",
        scores,
        scores,
        topk,
        scoring="sigmoid",
        renormalize=renormalize,
        correction_bias=bias,
        num_expert_group=num_expert_group,
        topk_group=topk_group,
        routed_scaling_factor=routed_scaling_factor,
    )


def _check_scoring(function: str, scoring: str) -> None:
    if scoring not in _SCORINGS:
        raise ValueError(
            f"{function}: scoring_func: expected one of {', '.join(_SCORINGS)}, got {scoring!r}"
        )


@engine_names("grouped_topk", **_PYTHON_NAMES)
def grouped_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int = 0,
    topk_group: int = 0,
    scoring_func: str = "softmax",
    routed_scaling_factor: float = 1.0,
    e_score_correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The Python function `grouped_topk`: choose among the experts of the best groups.

    Args:
        hidden_states: [T, ...]; only its number of tokens matters.
        gating_output: float16, bfloat16 or float32 [T, E].
        topk: experts per token.
        renormalize: divide the weights of a token by their sum.
        num_expert_group: groups of neighbouring experts.
        topk_group: groups of a token that stay: those with the largest score, or with a bias with
            the largest sum of two.
        scoring_func: "softmax" or "sigmoid".
        routed_scaling_factor: multiplies the weights.
        e_score_correction_bias: [E], for the choice alone.

    Returns:
        topk_weights float32 [T, k] and topk_ids int32 [T, k].
    """
    _check_scoring("grouped_topk", scoring_func)
    if e_score_correction_bias is not None:
        refuse_single_experts("grouped_topk", gating_output, num_expert_group)
    return select_new(
        "grouped_topk",
        hidden_states,
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        correction_bias=e_score_correction_bias,
        num_expert_group=num_expert_group,
        topk_group=topk_group,
        routed_scaling_factor=routed_scaling_factor,
    )


@engine_names("fused_topk", **_PYTHON_NAMES)
def fused_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    indices_type: torch.dtype | None = None,
    scoring_func: str = "softmax",
) -> tuple[torch.Tensor, ...]:
    """The Python function `fused_topk`.

    Args:
        hidden_states: [T, ...]; only its number of tokens matters.
        gating_output: float16, bfloat16 or float32 [T, E].
        topk: experts per token.
        renormalize: divide the weights of a token by their sum.
        indices_type: type of the ids: int32, uint32 or int64; None stands for int32.
        scoring_func: "softmax" or "sigmoid".

    Returns:
        topk_weights float32 [T, k], topk_ids [T, k] and token_expert_indices int32 [T, k].
    """
    _check_scoring("fused_topk", scoring_func)
    return select_new(
        "fused_topk",
        hidden_states,
        gating_output,
        topk,
        scoring=scoring_func,
        renormalize=renormalize,
        indices_type=indices_type,
        with_indices=True,
    )


@engine_names(COMPUTE_ROUTING, scoring="scoring_func")
def compute_routing(
    self: Any,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    indices_type: torch.dtype | None = None,
    *,
    input_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The method of vLLM's default router, which needs no `token_expert_indices` of `fused_topk`.

    Args:
        self: the router, with `top_k`, `renormalize` and `scoring_func`, "softmax" or "sigmoid".
        hidden_states: [T, ...]; only its number of tokens matters.
        router_logits: float16, bfloat16 or float32 [T, E].
        indices_type: type of the ids: int32, uint32 or int64; None stands for int32.
        input_ids: not needed.

    Returns:
        topk_weights float32 [T, k] and topk_ids [T, k].
    """
    _check_scoring(COMPUTE_ROUTING, self.scoring_func)
    return select_new(
        COMPUTE_ROUTING,
        hidden_states,
        router_logits,
        self.top_k,
        scoring=self.scoring_func,
        renormalize=self.renormalize,
        indices_type=indices_type,
    )
