"""Calls of `select_experts`, and a model of the op in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import tessera

Array = npt.NDArray[Any]

LOGITS = np.array([[1, 3, 2, 0], [0, 0, 5, 0], [-1, -2, -4, -3]], np.float32)
BEST_TWO = [[1, 2], [2, 0], [0, 1]]


def violations(logits: Any, found: Any, **options: Any) -> list[str]:
    broken = tessera.select_experts_contract_violations(logits, found, **options)
    return [violation.rule for violation in broken]


def random_call(seed: int, **options: Any) -> tuple[Array, dict[str, Any]]:
    """Logits of 40 tokens and 24 experts, and options, with an array for `correction_bias=True`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (40, 24)).astype(np.float32)
    if options.get("correction_bias"):
        options["correction_bias"] = random.normal(0, 1, 24).astype(np.float32)
    return logits, {"top_k": 4, **options}


def _scores(v: Array, scoring: str) -> Array:
    if scoring == "sigmoid":
        return 1 / (1 + np.exp(-v))
    if scoring == "sqrt_softplus":
        return np.sqrt(np.logaddexp(0, v))
    exponentials = np.exp(v - v.max())
    return exponentials / exponentials.sum()


def model(
    logits: Array,
    *,
    top_k: int,
    scoring: str = "softmax",
    renormalize: bool = False,
    correction_bias: Array | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
) -> tuple[Array, Array]:
    """For each token weights [T, k] in float64 and ids [T, k] of finite logits without ties."""
    num_groups = num_expert_group or 1
    weights, ids = [], []
    for v in logits.astype(float):
        scores = _scores(v, scoring)
        choice = v if correction_bias is None else scores + correction_bias
        groups = np.sort(choice.reshape(num_groups, -1), axis=1)[:, ::-1]
        of_group = groups[:, 0] if correction_bias is None else groups[:, :2].sum(1)
        staying = np.argsort(-of_group, kind="stable")[: topk_group or num_groups]
        is_gone = ~np.isin(np.arange(num_groups), staying)
        choice = np.where(np.repeat(is_gone, len(v) // num_groups), -np.inf, choice)
        chosen = np.argsort(-choice, kind="stable")[:top_k]
        chosen_scores = scores[chosen]
        if renormalize:
            chosen_scores = chosen_scores / chosen_scores.sum()
        weights.append(chosen_scores * routed_scaling_factor)
        ids.append(chosen)
    return np.array(weights), np.array(ids)
