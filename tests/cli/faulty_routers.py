"""Implementations of ops with several outputs, right ones and with planted faults."""

from __future__ import annotations

from typing import Any

import numpy as np


def scores_of(logits: Any, scoring: str) -> Any:
    """In float64, which is as near as float32 comes."""
    with np.errstate(all="ignore"):
        if scoring == "softmax":
            top = np.max(logits, axis=1, keepdims=True, initial=-np.inf)
            powers = np.exp(
                np.where(top == np.inf, np.where(logits == top, 0, -np.inf), logits - top)
            )
            powers = np.where(np.isneginf(top), 0, powers)
            sums = powers.sum(1, keepdims=True)
            return np.where(sums > 0, powers / np.where(sums > 0, sums, 1), 0)
        if scoring == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        scores = np.sqrt(np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))))
        infinite = np.isposinf(logits)
        shared = infinite / np.maximum(infinite.sum(1, keepdims=True), 1)
        return np.where(infinite.any(1, keepdims=True), shared, scores)


def router(
    router_logits: Any, *, top_k: int, scoring: str = "softmax", renormalize: bool = False
) -> Any:
    """Right without a bias and groups; a NaN counts as -inf."""
    logits = np.asarray(router_logits, np.float64)
    logits = np.where(np.isnan(logits), -np.inf, logits)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores_of(logits, scoring), ids, 1)
    if renormalize:
        sums = weights.sum(1, keepdims=True)
        weights = weights / np.where(sums > 0, sums, 1)
    return weights.astype(np.float32), ids.astype(np.int32)


def last_of_ties(router_logits: Any, *, top_k: int) -> Any:
    """Of equal logits the last ones."""
    num_experts = router_logits.shape[1]
    weights, ids = router(router_logits[:, ::-1], top_k=top_k)
    return weights, (num_experts - 1 - ids).astype(np.int32)


def first_for_nans(router_logits: Any, *, top_k: int) -> Any:
    """A token with a NaN gets expert 0 in every slot."""
    weights, ids = router(router_logits, top_k=top_k)
    ids[np.isnan(np.asarray(router_logits, np.float64)).any(1)] = 0
    return weights, ids


def powers_of_two(router_logits: Any, *, top_k: int) -> Any:
    num_experts = router_logits.shape[1]
    if num_experts & (num_experts - 1):
        raise ValueError(f"{num_experts} experts")
    return router(router_logits, top_k=top_k)


def weights_alone(router_logits: Any, *, top_k: int) -> Any:
    return router(router_logits, top_k=top_k)[0]


def one_output(router_logits: Any, *, top_k: int) -> Any:
    return (router(router_logits, top_k=top_k)[0],)


def permute(x: Any, topk_ids: Any, *, num_experts: int) -> Any:
    """Right without a map and blocks."""
    flat = topk_ids.reshape(-1).astype(np.int64)
    counts = (flat >= 0) & (flat < num_experts)
    order = np.argsort(np.where(counts, flat, num_experts), kind="stable")
    used = int(counts.sum())
    inverse = np.full(flat.shape, -1, np.int32)
    inverse[order[:used]] = np.arange(used)
    offsets = np.searchsorted(flat[order[:used]], np.arange(num_experts + 1))
    rows = np.empty((len(flat), x.shape[1]), x.dtype)
    rows[:used] = x[order[:used] // topk_ids.shape[1]]
    return rows, offsets.astype(np.int32), inverse.reshape(topk_ids.shape)


def permute_unstably(x: Any, topk_ids: Any, *, num_experts: int) -> Any:
    """The pairs of an expert in descending order."""
    rows, offsets, inverse = permute(x[::-1], topk_ids[::-1, ::-1], num_experts=num_experts)
    return rows, offsets, np.ascontiguousarray(inverse[::-1, ::-1])


def topk_softmax(
    topk_weights: Any,
    topk_ids: Any,
    token_expert_indices: Any,
    gating_output: Any,
    renormalize: bool = False,
) -> None:
    """An op with vLLM's parameters, for tensors of torch."""
    logits = gating_output.float().numpy()
    weights, ids = router(logits, top_k=topk_ids.shape[1], renormalize=renormalize)
    topk_weights.numpy()[...] = weights
    topk_ids.numpy()[...] = ids


def moe_permute(
    hidden_states: Any,
    a1q_scale: Any,
    topk_ids: Any,
    n_expert: int,
    n_local_expert: int = -1,
    expert_map: Any = None,
) -> Any:
    """A function with vLLM's parameters: pairs that do not count have rows that are not in use."""
    import torch

    ids = topk_ids.long()
    if expert_map is not None:
        known = (ids >= 0) & (ids < len(expert_map))
        ids = torch.where(known, expert_map.long()[ids.clamp(0, len(expert_map) - 1)], -1)
    flat = ids.flatten()
    counts = (flat >= 0) & (flat < n_local_expert)
    order = torch.argsort(torch.where(counts, flat, n_local_expert), stable=True)
    per_expert = torch.bincount(flat[counts], minlength=n_local_expert)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), per_expert.cumsum(0)])
    rows = hidden_states[order // topk_ids.shape[1]]
    return rows, None, offsets, torch.argsort(order).int(), order.int()
