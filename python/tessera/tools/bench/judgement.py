"""Evaluates times: the fastest contender, Tessera's ratios, and floors that are beaten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A contender beats the floor if it is faster by more than this.
_NOISE = 0.02

# The methods that compare the speed of contenders. In `graph` a call overlaps the previous one, in
# `chain` it has other kernels around it: neither alone decides.
GPU_METHODS = ("graph", "chain")

# Of ops whose calls are long: alone, and at the temperature and power of a long run.
LONG_CALL_METHODS = ("burst", "sustained")

SPEED_METHODS = (*GPU_METHODS, *LONG_CALL_METHODS, "call", "l2")

# Times by contender and method, as a row of results has them, and the kind of each contender.
Row = Mapping[str, Mapping[str, float]]
Kinds = Mapping[str, Any]


def speeds(us: Row, method: str) -> dict[str, float]:
    """The times of one method."""
    return {name: by_method[method] for name, by_method in us.items() if method in by_method}


def best(us: Mapping[str, float], kinds: Kinds, kind: str) -> tuple[str, float] | None:
    """The fastest contender of a kind, and its time."""
    found = [(time, name) for name, time in us.items() if kinds.get(name) == kind]
    return (min(found)[1], min(found)[0]) if found else None


def judged_methods(us: Row) -> list[str]:
    """The methods that decide on speed: all for a GPU, or the best of the others."""
    measured = [method for method in SPEED_METHODS if speeds(us, method)]
    on_gpu = [method for method in measured if method in (*GPU_METHODS, *LONG_CALL_METHODS)]
    return on_gpu or measured[:1]


def ratio(us: Row, kinds: Kinds, method: str, kind: str) -> float | None:
    """Tessera's time divided by the time of the fastest contender of a kind, by one method."""
    times = speeds(us, method)
    ours, other = best(times, kinds, "tessera"), best(times, kinds, kind)
    return ours[1] / other[1] if ours and other else None


def less_flattering(us: Row, kinds: Kinds, kind: str) -> float | None:
    """The greatest of the judged methods' ratios."""
    found = (ratio(us, kinds, method, kind) for method in judged_methods(us))
    return max((one for one in found if one is not None), default=None)


def below_floor(us: Row, kinds: Kinds) -> dict[str, dict[str, float]]:
    """By judged method, the times of contenders that are faster than the floor."""
    found = {}
    for method in judged_methods(us):
        times = speeds(us, method)
        floor = best(times, kinds, "floor")
        faster = {
            name: time
            for name, time in times.items()
            if floor and kinds.get(name) in ("tessera", "peer") and time < floor[1] * (1 - _NOISE)
        }
        if faster:
            found[method] = faster
    return found
