"""Load over the ranks of expert parallelism, under placements of the experts."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from tessera.tools.inspection.document import RANK_COUNTS, HeldOut, InHindsight, Ranks
from tessera.tools.inspection.load import max_over_mean

# Descriptions of the two placements, for readers of the figures.
CONTIGUOUS = "neighbours together, as in vLLM's linear placement"
BALANCED = (
    "by falling load, each to the least loaded rank with room (R. L. Graham's rule of the longest "
    "processing time, 1969, with equal numbers of experts on every rank, as in DeepSeek's EPLB)"
)


def rank_figures(
    first_half: npt.NDArray[np.int64], second_half: npt.NDArray[np.int64]
) -> list[Ranks]:
    """Imbalance for each of `RANK_COUNTS` up to the number of experts.

    Both arguments are numbers of ids per expert, int64[experts], in the halves of a layer's tokens.
    Nothing is held out if a half has no ids.
    """
    can_hold_out = first_half.any() and second_half.any()
    return [
        {
            "num_ranks": num_ranks,
            "held_out": _held_out(first_half, second_half, num_ranks) if can_hold_out else None,
            "all_tokens": _in_hindsight(first_half + second_half, num_ranks),
        }
        for num_ranks in RANK_COUNTS
        if num_ranks <= len(first_half)
    ]


def _held_out(
    first_half: npt.NDArray[np.int64], second_half: npt.NDArray[np.int64], num_ranks: int
) -> HeldOut:
    placement = balanced_placement(first_half, num_ranks)
    return {
        **_in_hindsight(second_half, num_ranks),
        "balanced": imbalance(second_half, placement, num_ranks),
    }


def _in_hindsight(counts: npt.NDArray[np.int64], num_ranks: int) -> InHindsight:
    contiguous = contiguous_placement(len(counts), num_ranks)
    return {
        "contiguous": imbalance(counts, contiguous, num_ranks),
        "in_hindsight": imbalance(counts, balanced_placement(counts, num_ranks), num_ranks),
    }


def _room(num_experts: int, num_ranks: int) -> npt.NDArray[np.int64]:
    """Experts of each rank: equal numbers, the first `num_experts % num_ranks` have one more."""
    return num_experts // num_ranks + (np.arange(num_ranks) < num_experts % num_ranks)


def contiguous_placement(num_experts: int, num_ranks: int) -> npt.NDArray[np.int64]:
    """Rank of each expert, int64[experts], by `CONTIGUOUS`."""
    return np.repeat(np.arange(num_ranks), _room(num_experts, num_ranks))


def balanced_placement(loads: npt.NDArray[np.int64], num_ranks: int) -> npt.NDArray[np.int64]:
    """Rank of each expert, int64[experts], by `BALANCED`."""
    room = _room(len(loads), num_ranks).tolist()
    ranks = np.empty(len(loads), np.int64)
    by_load = [(0, rank) for rank in range(num_ranks)]
    for expert in np.argsort(-loads, kind="stable").tolist():
        load, rank = heapq.heappop(by_load)
        ranks[expert] = rank
        room[rank] -= 1
        if room[rank] > 0:
            heapq.heappush(by_load, (load + int(loads[expert]), rank))
    return ranks


def imbalance(
    counts: npt.NDArray[np.int64], placement: npt.NDArray[np.int64], num_ranks: int
) -> float:
    """Largest over mean load of the ranks, from the numbers of ids and the ranks of the experts."""
    loads = np.zeros(num_ranks, np.int64)
    np.add.at(loads, placement, counts)
    return max_over_mean(loads)
