"""Functions of vLLM and SGLang as functions of Tessera's ops.

They are recognised by their first parameters, as the forms of `align_block_size` are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

Function = Callable[..., Any]
# The values of numbers that an engine's function has, by number.
Only = Mapping[str, Collection[Any]]

# The names that engines have for the scoring functions.
_ENGINE_SCORINGS = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrt_softplus": "sqrtsoftplus"}
# The scoring of ops that have one.
_SCORING_OF_OP = {
    "topk_softmax": "softmax",
    "topk_sigmoid": "sigmoid",
    "topk_hash_softplus_sqrt": "sqrt_softplus",
}


def as_op(op: str, function: Function) -> tuple[Function, Only]:
    """The function, or one with the parameters of the op that calls it, and what it is limited to.

    A function that is not recognised is returned as it is.
    """
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # compiled functions may have no signature
        return function, {}
    for first, adapt in _FORMS.get(op, {}).items():
        if tuple(names[: len(first)]) == first:
            adapted: tuple[Function, Only] = adapt(function, names)
            return adapted
    return function, {}


def _scoring_and_bias(names: list[str]) -> tuple[str | None, str | None]:
    """The parameters of a function for the scoring and the bias, if it has them."""
    bias = [name for name in names if name in ("e_score_correction_bias", "correction_bias")]
    return ("scoring_func" if "scoring_func" in names else None, bias[0] if bias else None)


def _without(function: Function, *missing: str) -> Function:
    """The function with a signature that lacks parameters which the engine's does not have."""
    signature = inspect.signature(function)
    kept = [one for name, one in signature.parameters.items() if name not in missing]
    function.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return function


def _topk_op(function: Function, names: list[str]) -> tuple[Function, Only]:
    """An op that writes to the caller's tensors, such as `topk_softmax`."""
    import torch

    _, bias_name = _scoring_and_bias(names)

    def select_experts(
        router_logits: Any,
        *,
        top_k: int,
        scoring: str = "softmax",
        renormalize: bool = False,
        correction_bias: Any = None,
    ) -> Any:
        shape = len(router_logits), top_k
        weights = router_logits.new_empty(shape, dtype=torch.float32)
        ids, indices = (router_logits.new_empty(shape, dtype=torch.int32) for _ in range(2))
        options = {} if correction_bias is None else {str(bias_name): correction_bias}
        if renormalize:
            options["renormalize"] = True
        if "token_expert_indices" in names:
            function(weights, ids, indices, router_logits, **options)
        else:
            function(weights, ids, router_logits, **options)
        return weights, ids

    missing = [] if bias_name else ["correction_bias"]
    missing += [] if "renormalize" in names else ["renormalize"]
    scoring = _SCORING_OF_OP.get(getattr(function, "__name__", ""), "softmax")
    return _without(select_experts, *missing), {"scoring": (scoring,)}


def _fused_topk(function: Function, names: list[str]) -> tuple[Function, Only]:
    """A Python function of an engine that returns weights and ids, without groups."""
    scoring_name, bias_name = _scoring_and_bias(names)

    def select_experts(
        router_logits: Any,
        *,
        top_k: int,
        scoring: str = "softmax",
        renormalize: bool = False,
        correction_bias: Any = None,
    ) -> Any:
        options = {}
        if scoring_name is not None:
            options[scoring_name] = _ENGINE_SCORINGS[scoring]
        if correction_bias is not None:
            options[str(bias_name)] = correction_bias
        call = {"hidden_states": router_logits, "gating_output": router_logits}
        return function(**call, topk=top_k, renormalize=renormalize, **options)[:2]

    adapted = _without(select_experts, *([] if bias_name else ["correction_bias"]))
    scorings = ("softmax", "sigmoid") if scoring_name else ("softmax",)
    return adapted, {"scoring": scorings}


def _grouped_topk(function: Function, names: list[str]) -> tuple[Function, Only]:
    """A Python function of an engine that returns weights and ids, with groups."""
    scoring_name, bias_name = _scoring_and_bias(names)
    biased = "correction_bias" in names  # SGLang's: by sigmoid

    def select_experts(
        router_logits: Any,
        *,
        top_k: int,
        scoring: str = "softmax",
        renormalize: bool = False,
        correction_bias: Any = None,
        num_expert_group: int = 1,
        topk_group: int = 1,
        routed_scaling_factor: float = 1.0,
    ) -> Any:
        options: dict[str, Any] = {}
        if scoring_name is not None:
            options[scoring_name] = _ENGINE_SCORINGS[scoring]
        if biased and correction_bias is None:
            correction_bias = router_logits.new_zeros(router_logits.shape[1]).float()
        if correction_bias is not None:
            options[str(bias_name)] = correction_bias
        if routed_scaling_factor != 1:
            options["routed_scaling_factor"] = routed_scaling_factor
        if "apply_routed_scaling_factor_on_output" in names:
            options["apply_routed_scaling_factor_on_output"] = True
            options["routed_scaling_factor"] = routed_scaling_factor
        return function(
            hidden_states=router_logits,
            gating_output=router_logits,
            topk=top_k,
            renormalize=renormalize,
            num_expert_group=num_expert_group,
            topk_group=topk_group,
            **options,
        )

    missing = [] if bias_name else ["correction_bias"]
    if "routed_scaling_factor" not in names:
        missing.append("routed_scaling_factor")
    scorings = ("softmax", "sigmoid") if scoring_name else ("sigmoid" if biased else "softmax",)
    return _without(select_experts, *missing), {"scoring": scorings}


def _grouped_topk_op(function: Function, names: list[str]) -> tuple[Function, Only]:
    """The op `grouped_topk` of vLLM, with the sigmoid of logits."""

    def select_experts(
        router_logits: Any,
        *,
        top_k: int,
        scoring: str = "softmax",
        renormalize: bool = False,
        correction_bias: Any = None,
        num_expert_group: int = 1,
        topk_group: int = 1,
        routed_scaling_factor: float = 1.0,
    ) -> Any:
        if correction_bias is None:
            correction_bias = router_logits.new_zeros(router_logits.shape[1]).float()
        options = (renormalize, routed_scaling_factor, correction_bias, 1)
        return function(router_logits, num_expert_group, topk_group, top_k, *options)

    return select_experts, {"scoring": ("sigmoid",)}


def _sum(function: Function, names: list[str]) -> tuple[Function, Only]:
    """The op `moe_sum` of vLLM, which writes to the caller's tensor and has no weights."""

    def moe_sum(input: Any) -> Any:
        out = input.new_empty((input.shape[0], input.shape[2]))
        function(input, out)
        return out

    return moe_sum, {}


def _permute(function: Function, names: list[str]) -> tuple[Function, Only]:
    """The function `moe_permute` of vLLM; pairs whose row is not in use have -1."""
    import torch

    def moe_permute(x: Any, topk_ids: Any, *, num_experts: int, expert_map: Any = None) -> Any:
        all_experts = num_experts if expert_map is None else len(expert_map)
        rows, _, offsets, inverse, _ = function(
            x, None, topk_ids, all_experts, num_experts, expert_map
        )
        inverse = torch.where(inverse < offsets[-1], inverse, -1).view(topk_ids.shape)
        return rows, offsets.to(torch.int32), inverse

    return moe_permute, {}


def _unpermute(function: Function, names: list[str]) -> tuple[Function, Only]:
    """The function `moe_unpermute` of vLLM, which writes to the caller's tensor."""
    import torch

    def moe_unpermute(rows: Any, topk_weights: Any, inverse: Any) -> Any:
        if topk_weights is None:
            topk_weights = rows.new_ones(inverse.shape).float()
        num_rows = len(rows)
        is_row = (inverse >= 0) & (inverse < num_rows)
        inverse = torch.where(is_row, inverse, num_rows)  # a row that is not in use
        offsets = rows.new_full((1,), num_rows, dtype=torch.int64)
        out = rows.new_empty((len(inverse), rows.shape[1]))
        function(out, rows, topk_weights, inverse, offsets)
        return out

    return moe_unpermute, {}


# By op, what the parameters of a function begin with, and what adapts it. The longer ones first.
_TOKENS = ("hidden_states", "gating_output")
_CHOICE = ("topk", "renormalize")
_GROUPS = ("num_expert_group", "topk_group")
_FORMS: dict[str, dict[tuple[str, ...], Any]] = {
    "select_experts": {
        ("topk_weights", "topk_ids"): _topk_op,
        ("topk_weights", "topk_indices"): _topk_op,
        ("scores", *_GROUPS, "topk", "renormalize", "routed_scaling_factor", "bias"): (
            _grouped_topk_op
        ),
        (*_TOKENS, *_CHOICE, *_GROUPS): _grouped_topk,
        (*_TOKENS, "correction_bias", *_CHOICE, *_GROUPS): _grouped_topk,
        (*_TOKENS, *_CHOICE): _fused_topk,
    },
    "moe_sum": {("input", "output"): _sum},
    "moe_permute": {("hidden_states", "a1q_scale", "topk_ids", "n_expert"): _permute},
    "moe_unpermute": {("out", "permuted_hidden_states", "topk_weights"): _unpermute},
}
