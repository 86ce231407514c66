"""How far the values of two runs of an engine are apart: log-probabilities and greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


def logprob_differences(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Quantiles of the absolute differences, and their mean with its sign.

    Args:
        ours: log-probabilities of the prompts' tokens, [prompts, tokens].
        theirs: another run's log-probabilities of the same tokens, in the same shape.
    """
    difference = ours - theirs
    quantiles = np.quantile(np.abs(difference), QUANTILES)
    return {
        "tokens": difference.size,
        "equal": float(np.mean(difference == 0)),
        "mean": float(np.mean(difference)),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles.tolist(), strict=True)),
    }


def greedy_agreement(
    ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """How long two greedy continuations of each prompt are equal.

    Args:
        ours: the tokens generated for each prompt.
        theirs: the tokens that another run generated, equally many for each prompt.
    """
    lengths = [len(tokens) for tokens in ours]
    equal = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), len(pair[0]))
        for pair in zip(ours, theirs, strict=True)
    ]
    return {
        "prompts": len(equal),
        "share_before_first_difference": sum(equal) / sum(lengths),
        "prompts_equal": sum(map(int.__eq__, equal, lengths)),
    }
