"""Drift: how the load of a layer's experts differs between consecutive windows of its tokens."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from tessera.tools.inspection.document import Drift, MovedExpert, PlacedByFirst
from tessera.tools.inspection.ranks import balanced_placement, contiguous_placement, imbalance

_MAX_MOVED_SHOWN = 10
_NUM_RANKS = 8


def drift_figures(
    slices: npt.NDArray[np.int64], slice_tokens: int, num_tokens: int
) -> Drift | None:
    """Figures of a layer; None if a window has fewer ids than there are experts.

    Args:
        slices: numbers of ids per expert, int64[slices, experts], in slices of so many tokens, of
            which the last ones may be empty.
        slice_tokens: tokens in a slice; the last one with tokens may have fewer.
        num_tokens: tokens of the layer.
    """
    windows, window_tokens = _windows(slices, slice_tokens, num_tokens)
    num_ids, num_experts = windows.sum(axis=1), windows.shape[1]
    if len(windows) < 2 or num_experts < 2 or num_ids.min() < num_experts:
        return None
    shares = windows / num_ids[:, None]
    between = [distance(one, other) for one, other in itertools.pairwise(shares)]
    whole = windows.sum(axis=0) / num_ids.sum()
    moved = shares.max(axis=0) - shares.min(axis=0)
    most = np.argsort(-moved, kind="stable")[:_MAX_MOVED_SHOWN]
    experts: list[MovedExpert] = [
        {"expert": int(expert), "shares": shares[:, expert].tolist()}
        for expert in most
        if moved[expert] > 0
    ]
    return {
        "window_tokens": window_tokens,
        "between": between,
        "first_to_last": distance(shares[0], shares[-1]),
        "by_chance": by_chance(whole, float(num_ids.mean()), float(num_ids.mean())),
        "experts": experts,
        "placed_by_first": _placed_by_first(windows),
    }


def distance(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Total variation distance of two distributions, float64[experts]: 0 to 1."""
    return float(np.abs(one - other).sum() / 2)


def by_chance(shares: npt.NDArray[np.float64], num_ids: float, num_others: float) -> float:
    """The distance to expect between two random samples of one and the same load.

    An expert's counts are taken for independent and normal; where they are too few for that, the
    difference is at most the sum of both.
    """
    deviation = np.sqrt(shares * (1 - shares) * (1 / num_ids + 1 / num_others))
    return float(np.minimum(np.sqrt(2 / np.pi) * deviation, 2 * shares).sum() / 2)


def _windows(
    slices: npt.NDArray[np.int64], slice_tokens: int, num_tokens: int
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The slices that have tokens; the last one joins its neighbour if it is less than half full.

    So little of a layer would differ from the rest by chance alone.
    """
    full, rest = divmod(num_tokens, slice_tokens)
    windows = slices[: full + (rest > 0)].copy()
    tokens = [slice_tokens] * full + [rest] * (rest > 0)
    if full and 0 < 2 * rest < slice_tokens:
        windows[full - 1] += windows[full]
        windows = windows[:full]
        tokens[full - 1 :] = [slice_tokens + rest]
    return windows, tokens


def _placed_by_first(windows: npt.NDArray[np.int64]) -> PlacedByFirst:
    num_experts = windows.shape[1]
    num_ranks = min(_NUM_RANKS, 1 << (num_experts.bit_length() - 1))
    placement = balanced_placement(windows[0], num_ranks)
    contiguous = contiguous_placement(num_experts, num_ranks)
    return {
        "num_ranks": num_ranks,
        "balanced": [imbalance(counts, placement, num_ranks) for counts in windows],
        "contiguous": [imbalance(counts, contiguous, num_ranks) for counts in windows],
    }
