"""Two logs side by side: before and after a change, or two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.inspection.advice import advice
from tessera.tools.inspection.document import (
    RANK_COUNTS,
    ChangedExpert,
    ComparedLayer,
    ComparedSide,
    Comparison,
    Layer,
    Log,
    Model,
    PlacedRanks,
)
from tessera.tools.inspection.drift import by_chance, distance
from tessera.tools.inspection.load import HOT_OVER_MEAN
from tessera.tools.inspection.ranks import balanced_placement, imbalance
from tessera.tools.routing_files import layer_name

_MAX_EXPERTS_SHOWN = 10
_MAX_LAYERS_NAMED = 8


def compare(logs: Sequence[Log], names: Sequence[str], models: Sequence[Model]) -> Comparison:
    """The comparison of two logs, whose layers are matched by name.

    Args:
        logs: two.
        names: of the logs.
        models: with the layers of the logs.

    Raises:
        ValueError: they have no layer of the same name.
    """
    sides = [_layers(models, log) for log in (0, 1)]
    notes: list[str] = []
    pairs = _matched(sides, names, notes)
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    num_experts = [log["num_experts"] for log in logs]
    compared: list[ComparedLayer] = []
    changed: list[ChangedExpert] = []
    placed: list[PlacedRanks] = []
    if num_experts[0] == num_experts[1]:
        compared = [_layer(*pair) for pair in pairs]
        changed = _changed(pairs)
        placed = _placed(pairs)
    else:
        text = f"{num_experts[0]} and {num_experts[1]} experts: not compared one by one"
        if any(log["num_experts_source"] == "largest id + 1" for log in logs):
            text += "; where a number is the largest id + 1, --experts gives the right one"
        notes.append(text)
    of_loads = [
        name
        for name, layers in zip(names, (first, second), strict=True)
        if not all(layer["batches"] for layer in layers)
    ]
    if of_loads:
        have = f"{' and '.join(of_loads)} {'have' if len(of_loads) > 1 else 'has'}"
        notes.append(f"block sizes are not compared: {have} loads without tokens")
    has_tokens = not of_loads
    return {
        "first": _side(names[0], num_experts[0], first, has_tokens),
        "second": _side(names[1], num_experts[1], second, has_tokens),
        "num_layers": len(pairs),
        "layers": compared,
        "experts": changed,
        "placed_by_first": placed,
        "notes": notes,
    }


def _layers(models: Sequence[Model], log: int) -> dict[LayerKey, Layer]:
    return {
        layer["layer"]: layer
        for model in models
        for layer in model["layers"]
        if layer["log"] == log
    }


def _matched(
    sides: Sequence[dict[LayerKey, Layer]], names: Sequence[str], notes: list[str]
) -> list[tuple[Layer, Layer]]:
    first, second = sides
    if len(first) == len(second) == 1 and None in (*first, *second):
        # A file of one layer need not name it.
        return [(next(iter(first.values())), next(iter(second.values())))]
    pairs = [(layer, second[key]) for key, layer in first.items() if key in second]
    if not pairs:
        raise ValueError(
            f"--compare: expected layers of the same name in both logs, got {_listed(first)} in "
            f"{names[0]}, and {_listed(second)} in {names[1]}"
        )
    for name, own, other in ((names[0], first, second), (names[1], second, first)):
        alone = {key: None for key in own if key not in other}
        if alone:
            notes.append(f"only in {name}, and left out: {_listed(alone)}")
    return pairs


def _listed(layers: dict[LayerKey, Layer] | dict[LayerKey, None]) -> str:
    names = ["a layer without a name" if key is None else layer_name(key) for key in layers]
    more = len(names) - _MAX_LAYERS_NAMED
    return ", ".join(names[:_MAX_LAYERS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counts(layer: Layer) -> npt.NDArray[np.int64]:
    return np.array(layer["expert_counts"], np.int64)


def _side(name: str, num_experts: int, layers: Sequence[Layer], has_tokens: bool) -> ComparedSide:
    counts = np.stack([_counts(layer) for layer in layers])
    over_mean = counts / counts.mean(axis=1, keepdims=True)
    loads = [layer["load"] for layer in layers]
    ranks = [[row["all_tokens"] for row in layer["ranks"]] for layer in layers]
    return {
        "name": name,
        "num_experts": num_experts,
        "num_tokens": sum(layer["num_tokens"] for layer in layers),
        "num_pairs": int(counts.sum()),
        "entropy_bits": float(np.mean([load["entropy_bits"] for load in loads])),
        "max_entropy_bits": loads[0]["max_entropy_bits"],
        "gini": float(np.mean([load["gini"] for load in loads])),
        "max_over_mean": float(np.mean([load["max_over_mean"] for load in loads])),
        "largest_max_over_mean": max(load["max_over_mean"] for load in loads),
        "num_hot": int(np.count_nonzero(over_mean >= HOT_OVER_MEAN)),
        "num_dead": int(np.count_nonzero(counts == 0)),
        "sorted_over_mean": (-np.sort(-over_mean, axis=1)).mean(axis=0).tolist(),
        "ranks": [
            {
                "num_ranks": num_ranks,
                "contiguous": float(np.mean([row["contiguous"] for row in of_layers])),
                "in_hindsight": float(np.mean([row["in_hindsight"] for row in of_layers])),
            }
            for num_ranks, of_layers in zip(RANK_COUNTS, zip(*ranks, strict=True), strict=False)
        ],
        "advice": advice(layers) if has_tokens else [],
    }


def _layer(one: Layer, other: Layer) -> ComparedLayer:
    counts = [_counts(one), _counts(other)]
    totals = [float(each.sum()) for each in counts]
    shares = (counts[0] + counts[1]) / sum(totals)
    return {
        "layer": one["layer"] if one["layer"] is not None else other["layer"],
        "distance": distance(counts[0] / totals[0], counts[1] / totals[1]),
        "by_chance": by_chance(shares, *totals),
    }


def _changed(pairs: Sequence[tuple[Layer, Layer]]) -> list[ChangedExpert]:
    shares = [
        np.stack([_counts(pair[side]) / sum(pair[side]["expert_counts"]) for pair in pairs])
        for side in (0, 1)
    ]
    change = np.abs(shares[1] - shares[0])
    most = np.argsort(-change, axis=None, kind="stable")[:_MAX_EXPERTS_SHOWN]
    places = np.column_stack(np.unravel_index(most, change.shape)).tolist()
    return [
        {
            "layer": pairs[pair][0]["layer"],
            "expert": expert,
            "first": float(shares[0][pair, expert]),
            "second": float(shares[1][pair, expert]),
        }
        for pair, expert in places
        if change[pair, expert] > 0
    ]


def _placed(pairs: Sequence[tuple[Layer, Layer]]) -> list[PlacedRanks]:
    num_experts = len(pairs[0][0]["expert_counts"])
    return [
        {
            "num_ranks": num_ranks,
            "on_second": float(
                np.mean(
                    [
                        imbalance(
                            _counts(other), balanced_placement(_counts(one), num_ranks), num_ranks
                        )
                        for one, other in pairs
                    ]
                )
            ),
        }
        for num_ranks in RANK_COUNTS
        if num_ranks <= num_experts
    ]
