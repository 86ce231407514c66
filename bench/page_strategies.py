"""The part of the performance page about the CUDA strategies: what each of them is worth."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from page_text import read_results, table

INTRODUCTION = """\
### The strategies

The loss is what a batch would lose without a strategy: how much longer the fastest launch of any
other strategy takes, over the shapes for which the policy chooses this one. If it is negative,
another strategy would have been faster than the policy's choice.
"""


class Chosen(NamedTuple):
    """A shape for which the policy chooses a strategy, the next best one, and what that loses."""

    num_ids: int
    next_best: str
    loss: float


def chosen_shapes(result: dict[str, Any]) -> dict[str, list[Chosen]]:
    """By strategy, in the order of the launches, the shapes that the policy gives to it."""
    found: dict[str, list[Chosen]] = defaultdict(list)
    for shape in result["shapes"]:
        best: dict[str, float] = {}
        for launch in shape["launches"]:
            strategy = _strategy(launch["plan"])
            best[strategy] = min(launch["us"], best.get(strategy, launch["us"]))
        chosen = _strategy(shape["chosen"])
        us, other = min((us, other) for other, us in best.items() if other != chosen)
        found[chosen].append(Chosen(shape["num_ids"], other, us / shape["chosen_us"] - 1))
    return dict(found)


def _strategy(plan: str) -> str:
    return plan.partition(":")[0]


def strategy_parts() -> list[str]:
    """The section; nothing if the launches were not measured."""
    result = read_results("h200/policy.json")
    if result is None:
        return []
    rows = []
    by_strategy = chosen_shapes(result)
    for strategy, shapes in by_strategy.items():
        losses = [shape.loss for shape in shapes]
        others = Counter(shape.next_best for shape in shapes)
        least, most = (f(shape.num_ids for shape in shapes) for f in (min, max))
        shares = (statistics.mean(losses), min(losses), max(losses))
        rows.append(
            [
                f"`{strategy}`",
                str(len(shapes)),
                f"{least:,} to {most:,}",
                ", ".join(f"`{other}` {count}" for other, count in others.most_common()),
                *(f"{share:.0%}" for share in shares),
            ]
        )
    launches = (launch for shape in result["shapes"] for launch in shape["launches"])
    tried = {_strategy(launch["plan"]) for launch in launches}
    unchosen = ", ".join(f"`{one}`" for one in sorted(tried - by_strategy.keys()))
    header = ["strategy", "shapes", "ids", "next best, on shapes", "loss: mean", "least", "most"]
    experts = [shape["num_experts"] for shape in result["shapes"]]
    when = [
        f"{result['device']}; {len(experts)} shapes of {min(experts)} to {max(experts)} experts"
    ]
    if "commit" in result:
        when += [f"commit {(result['commit'] or 'unknown')[:10]}", result["date"]]
    return [
        INTRODUCTION,
        f"{'; '.join(when)}. {result['method']}.\n",
        table(header, rows),
        *([f"Chosen for none of these shapes: {unchosen}.\n"] if unchosen else []),
    ]
