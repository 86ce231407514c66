"""Rows of the tables, over all layers of a model; paragraphs and figures also use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tessera.tools.inspection.advice import blocks_over
from tessera.tools.inspection.document import Document, Layer, Model
from tessera.tools.report.words import number, plural
from tessera.tools.routing_files import layer_name
from tessera.tools.routing_files.several import file_names

Placement = Literal["contiguous", "balanced", "in_hindsight"]
PLACEMENTS: dict[Placement, str] = {
    "contiguous": "contiguous",
    "balanced": "balanced",
    "in_hindsight": "in hindsight",
}


@dataclass(frozen=True)
class Advice:
    """The advice for one batch size, with its reasons."""

    batch_size: int
    extrapolated: bool
    active_experts: float
    pairs_per_expert: float  # per active expert
    block_size: int
    blocks: dict[int, float]  # by block size: mean number in a layer
    padding: dict[int, float]  # by block size: share of the slots
    costs: dict[int, float]  # by block size: relative to the cheapest

    def neighbours(self) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
        """Size and cost of the next smaller and the next larger block size."""
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


@dataclass(frozen=True)
class Comparison:
    """Placements side by side: all figures are for the same tokens of the same layers.

    tokens: the tokens that judge, in words.
    judged_on: the same with their number, over all these layers.
    num_layers: the number of layers that the means cover.
    num_too_short: the number of layers that they do not cover.
    rows: by number of ranks; all rows have the same placements.
    """

    tokens: str
    judged_on: str
    num_layers: int
    num_too_short: int
    rows: dict[int, dict[Placement, Imbalance]]

    @property
    def placements(self) -> dict[Placement, str]:
        """The compared placements, with their names."""
        row = next(iter(self.rows.values()))
        return {name: PLACEMENTS[name] for name in row}

    @property
    def too_few(self) -> str:
        """Why no placement is judged on tokens that were held out."""
        return "no tokens" if self.tokens == "all loads" else "too few tokens"

    @property
    def reading(self) -> str:
        """An explanation of the figures: the tokens that judge, and the basis of the placements."""
        text = f"Every placement is judged on {self.judged_on}. "
        if "balanced" in self.placements:
            text += "Balanced: by the loads of the first half. "
        text += "In hindsight: balanced by the loads of the tokens that judge."
        if "balanced" not in self.placements:
            text += f" Balanced: {self.too_few} to hold out."
        elif self.num_too_short:
            too_short = plural(self.num_too_short, "layer")
            text += f" Too few tokens to hold out, and left out: {too_short}."
        if self.num_layers > 1:
            text += f" Means over {plural(self.num_layers, 'layer')}."
        return text


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
    """Groups of neighbouring batch sizes with the same block size."""
    runs = list[list[Advice]]()
    for row in rows:
        if runs and runs[-1][-1].block_size == row.block_size:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def comparison(model: Model) -> Comparison | None:
    """The placements on the tokens held out, or on all tokens if no layer has enough to hold out.

    None for one expert, since there are no ranks then.
    """
    layers = [layer for layer in model["layers"] if layer["num_held_out"]]
    if not layers:
        return on_all_tokens(model)
    tokens = "the second half of the tokens"
    num_judging = sum(layer["num_held_out"] for layer in layers)
    num_tokens = sum(layer["num_tokens"] for layer in layers)
    return Comparison(
        tokens=tokens,
        judged_on=f"{tokens}, {number(num_judging)} of {number(num_tokens)}",
        num_layers=len(layers),
        num_too_short=len(model["layers"]) - len(layers),
        rows=_imbalance(layers, "held_out"),
    )


def on_all_tokens(model: Model) -> Comparison | None:
    """The placements on all tokens of all layers, except the one made from half of them."""
    layers = model["layers"]
    if not layers[0]["ranks"]:
        return None
    # Loads are without tokens.
    judged_on = f"all tokens, {number(sum(layer['num_tokens'] for layer in layers))}"
    return Comparison(
        tokens="all tokens" if model["top_k"] else "all loads",
        judged_on=judged_on if model["top_k"] else "all loads",
        num_layers=len(layers),
        num_too_short=0,
        rows=_imbalance(layers, "all_tokens"),
    )


def _imbalance(
    layers: Sequence[Layer], judged_on: Literal["held_out", "all_tokens"]
) -> dict[int, dict[Placement, Imbalance]]:
    rows = dict[int, dict[Placement, Imbalance]]()
    for of_layers in zip(*(layer["ranks"] for layer in layers), strict=True):
        figures = [cast(Mapping[Placement, float], row[judged_on]) for row in of_layers]
        rows[of_layers[0]["num_ranks"]] = {
            name: _over_layers([one[name] for one in figures])
            for name in PLACEMENTS
            if name in figures[0]
        }
    return rows


def _over_layers(ratios: Sequence[float]) -> Imbalance:
    return Imbalance(sum(ratios) / len(ratios), min(ratios), max(ratios))


def layer_names(document: Document, model: Model) -> list[str]:
    """A name for each layer of the model: its number, its file, or both if needed."""
    layers = model["layers"]
    of_logs = file_names([Path(log["file"]) for log in document["logs"]])
    files = [of_logs[layer["log"]] for layer in layers]
    numbers = [layer["layer"] for layer in layers]
    return [
        file
        if number is None
        else layer_name(number)
        if numbers.count(number) == 1
        else f"{layer_name(number)} of {file}"
        for file, number in zip(files, numbers, strict=True)
    ]


def over_mean(layer: Layer) -> list[float]:
    """Every expert's load over the mean load."""
    counts = layer["expert_counts"]
    mean = sum(counts) / len(counts)
    return [count / mean for count in counts]
