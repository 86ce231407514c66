"""Rows of the tables, over all layers of a model; findings and figures read them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from tessera.inspection.advice import blocks_over
from tessera.inspection.document import Document, Layer, Model

Placement = Literal["contiguous", "balanced", "balanced_held_out"]
PLACEMENTS: dict[Placement, str] = {
    "contiguous": "contiguous",
    "balanced": "balanced",
    "balanced_held_out": "balanced, held out",
}


@dataclass(frozen=True)
class Advice:
    """What is advised for one batch size, and why."""

    batch_size: int
    extrapolated: bool
    active_experts: float
    pairs_per_expert: float  # of the active ones
    block_size: int
    blocks: dict[int, float]  # by block size: mean number in a layer
    padding: dict[int, float]  # by block size: share of the slots
    costs: dict[int, float]  # by block size: the cheapest has 1.0

    def neighbours(self) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
        """Block size and cost of the next smaller and the next larger one."""
        sizes = sorted(self.costs)
        place = sizes.index(self.block_size)
        beside = [sizes[i] if 0 <= i < len(sizes) else None for i in (place - 1, place + 1)]
        smaller, larger = [None if one is None else (one, self.costs[one]) for one in beside]
        return smaller, larger


@dataclass(frozen=True)
class Imbalance:
    """Load of the busiest rank over the mean, for one number of ranks and one placement."""

    mean: float  # over the layers
    best: float
    worst: float


def advice(model: Model) -> list[Advice]:
    """One row for each batch size."""
    return [_advice(model, place) for place in range(len(model["advice"]))]


def _advice(model: Model, place: int) -> Advice:
    advised, layers = model["advice"][place], model["layers"]
    batches = [layer["batches"][place] for layer in layers]
    blocks = {one["block_size"]: one for one in blocks_over(layers, advised["batch_size"])}
    best = blocks[advised["block_size"]]
    pairs = best["num_blocks"] * best["block_size"] * (1 - best["padding_share"])
    active = sum(batch["active_experts"] for batch in batches)
    return Advice(
        batch_size=advised["batch_size"],
        extrapolated=any(batch["extrapolated"] for batch in batches),
        active_experts=active / len(layers),
        pairs_per_expert=pairs / active,
        block_size=advised["block_size"],
        blocks={size: one["num_blocks"] / len(layers) for size, one in blocks.items()},
        padding={size: one["padding_share"] for size, one in blocks.items()},
        costs={cost["block_size"]: cost["relative_cost"] for cost in advised["costs"]},
    )


def advice_runs(rows: Sequence[Advice]) -> list[list[Advice]]:
    """Neighbouring batch sizes with the same block size, together."""
    runs = list[list[Advice]]()
    for row in rows:
        if runs and runs[-1][-1].block_size == row.block_size:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def imbalance(model: Model) -> dict[int, dict[Placement, Imbalance]]:
    """By number of ranks and placement, over the layers that have it."""
    found = dict[int, dict[Placement, list[float]]]()
    for row in (row for layer in model["layers"] for row in layer["ranks"]):
        values = found.setdefault(row["num_ranks"], {name: [] for name in PLACEMENTS})
        for name in PLACEMENTS:
            if (ratio := row[name]) is not None:
                values[name].append(ratio)
    return {
        ranks: {
            name: Imbalance(sum(ratios) / len(ratios), min(ratios), max(ratios))
            for name, ratios in values.items()
            if ratios
        }
        for ranks, values in found.items()
    }


def layer_names(document: Document, model: Model) -> list[str]:
    """A name for each layer of the model: its number, its file, or both where it takes both."""
    layers = model["layers"]
    files = [PurePath(document["logs"][layer["log"]]["file"]).name for layer in layers]
    numbers = [layer["layer"] for layer in layers]
    return [
        file
        if number is None
        else f"layer {number}"
        if numbers.count(number) == 1
        else f"layer {number} of {file}"
        for file, number in zip(files, numbers, strict=True)
    ]


def over_mean(layer: Layer) -> list[float]:
    """Every expert's load over the mean load."""
    counts = layer["expert_counts"]
    mean = sum(counts) / len(counts)
    return [count / mean for count in counts]
