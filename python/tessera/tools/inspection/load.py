"""Load of a layer's experts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.tools.inspection.document import HotExpert, Load

HOT_OVER_MEAN = 2.0
_MAX_HOT_SHOWN = 10


def load_figures(counts: npt.NDArray[np.int64]) -> Load:
    """Figures from the number of ids of each expert, int64[experts], with at least one id."""
    shares = counts[counts > 0] / counts.sum()
    return {
        "entropy_bits": float(-(shares * np.log2(shares)).sum()) + 0.0,  # not -0.0
        "max_entropy_bits": math.log2(len(counts)),
        "gini": gini(counts),
        "max_over_mean": max_over_mean(counts),
        "hot_experts": hot_experts(counts),
        "dead_experts": np.flatnonzero(counts == 0).tolist(),
    }


def gini(counts: npt.NDArray[np.int64]) -> float:
    """Gini coefficient: 0 for equal counts, 1 - 1/n if one of n has all."""
    ascending = np.sort(counts)
    n = len(ascending)
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks * ascending).sum() / (n * ascending.sum()) - (n + 1) / n)


def max_over_mean(loads: npt.NDArray[Any]) -> float:
    """Largest over mean load."""
    return float(loads.max() / loads.mean())


def hot_experts(counts: npt.NDArray[np.int64]) -> list[HotExpert]:
    """The experts with at least `HOT_OVER_MEAN` times the mean load, hottest first."""
    mean, total = counts.mean(), counts.sum()
    hottest = np.argsort(-counts, kind="stable")[:_MAX_HOT_SHOWN]
    return [
        {
            "expert": int(expert),
            "count": int(counts[expert]),
            "share": float(counts[expert] / total),
            "over_mean": float(counts[expert] / mean),
        }
        for expert in hottest
        if counts[expert] >= HOT_OVER_MEAN * mean
    ]
