"""The routers of vLLM and SGLang in plain torch: what their stand-ins do without Tessera.

Written from the engines' published formulas, in float64, so that their results are the exact ones
to which the served ones are compared.
"""

from __future__ import annotations

from typing import Any

import torch

from engine_ops import calls

NEGATIVE = -torch.inf


def scores_of(logits: Any, scoring: str) -> Any:
    """Each expert's score."""
    exact = logits.double()
    if scoring == "softmax":
        return exact.softmax(-1)
    if scoring == "sigmoid":
        return exact.sigmoid()
    return torch.nn.functional.softplus(exact, threshold=1000).sqrt()


def choose(
    logits: Any,
    top_k: int,
    *,
    scoring: str = "softmax",
    renormalize: bool = False,
    bias: Any = None,
    num_groups: int = 1,
    topk_group: int = 1,
    factor: float = 1.0,
) -> tuple[Any, Any]:
    """Score, choose by score and bias among the best groups, renormalise, scale."""
    calls.append("choose")
    scores = scores_of(logits, scoring)
    choice = scores if bias is None else scores + bias.double()
    groups = choice.view(len(choice), num_groups, -1)
    if bias is None or groups.shape[-1] == 1:
        of_group = groups.max(-1).values
    else:
        of_group = groups.topk(2, -1)[0].sum(-1)
    stay = torch.zeros_like(of_group, dtype=torch.bool)
    stay.scatter_(1, of_group.topk(topk_group, -1)[1], True)
    choice = groups.masked_fill(~stay.unsqueeze(-1), NEGATIVE).view(choice.shape)
    ids = choice.topk(top_k, -1)[1]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return (weights * factor).float(), ids.int()


def write(
    topk_weights: Any,
    topk_ids: Any,
    indices: Any,
    logits: Any,
    is_padding: Any = None,
    **options: Any,
) -> None:
    """As vLLM's ops: into the caller's tensors."""
    num_tokens, top_k = topk_weights.shape
    weights, ids = choose(logits, top_k, **options)
    topk_weights.copy_(weights)
    topk_ids.copy_(ids)
    if is_padding is not None:
        topk_ids[is_padding] = -1
    indices.copy_(torch.arange(num_tokens * top_k).view(top_k, num_tokens).t())


def add_rows(input: Any, output: Any) -> None:
    calls.append("add_rows")
    output.copy_(input.double().sum(1))


def permute(
    hidden_states: Any, topk_ids: Any, num_experts: int, num_local: int, expert_map: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Rows in the order of experts; those of experts that live elsewhere come last.

    Returns:
        Rows, the first row of each expert, the row of each pair, the pair and the expert of each
        row; past the rows in use rows of zeros, T * k and -1.
    """
    calls.append("permute")
    flat = topk_ids.flatten().long()
    local = flat if expert_map is None else expert_map[flat].long()
    keys = torch.where(local < 0, num_experts + flat, local)
    order = torch.argsort(keys, stable=True)
    inverse = torch.argsort(order)
    counts = torch.bincount(local[local >= 0], minlength=num_local)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    used = torch.arange(len(flat)) < offsets[-1]
    rows = hidden_states[order // topk_ids.shape[1]].clone()
    rows[~used] = 0
    pairs = torch.where(used, order, len(flat)).int()
    experts = torch.where(used, local[order], -1).int()
    return rows, offsets, inverse.int(), pairs, experts


def unpermute(out: Any, rows: Any, weights: Any, inverse: Any, offsets: Any = None) -> None:
    calls.append("unpermute")
    where = inverse.view(weights.shape).long()
    used = torch.ones_like(where, dtype=torch.bool) if offsets is None else where < offsets[-1]
    picked = rows[where].double().masked_fill(~used.unsqueeze(-1), 0)
    out.copy_((picked * weights.double().unsqueeze(-1)).sum(1))
