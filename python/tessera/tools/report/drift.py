"""Drift over the windows of a model's layers: the rows of its table, and a paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.tools.inspection.document import Drift, Model
from tessera.tools.report.words import number, percent, plural, times

SHOWN_LAYERS = 4  # those with the most drift
# Less than this over what chance makes is not told from chance.
_ABOVE_CHANCE = 1.25

NEEDS = (
    "Drift over time needs tokens in the order of time, and as many ids in each window as there "
    "are experts."
)
READING = (
    "Distances are total variation distances of the experts' shares of the load, the share that "
    "would have to go to other experts: 0, the same load; 1, no expert in common. By chance: what "
    "to expect of two random samples of one load."
)


@dataclass(frozen=True)
class DriftRow:
    """Distances of one layer, or their means over all of them.

    between, largest: of consecutive windows, mean and largest.
    moved: the experts that moved most, with their loads over the mean in the first and the last
        window; in words.
    """

    name: str
    between: float
    largest: float
    first_to_last: float
    by_chance: float
    moved: list[str]


@dataclass(frozen=True)
class Placed:
    """Load of the busiest rank over the mean, by window, under two placements.

    balanced: by the loads of the first window.
    """

    num_ranks: int
    balanced: list[float]
    contiguous: list[float]


@dataclass(frozen=True)
class DriftOfModel:
    """What is shown of a model's drift.

    windows: the windows, in words.
    mean: over the layers.
    most: the layers with the most drift from the first window to the last.
    shown: the same layers with their names.
    num_layers, num_without: layers with drift, and those with too few tokens.
    placed: means over the layers with the most windows; None with an expert for each rank, where
        no placement is better than another.
    """

    windows: str
    mean: DriftRow
    most: list[DriftRow]
    shown: list[tuple[str, Drift]]
    num_layers: int
    num_without: int
    placed: Placed | None


def drift_of(model: Model, names: Sequence[str]) -> DriftOfModel | None:
    """The drift of a model; None if no layer has any."""
    num_experts, layers = model["num_experts"], model["layers"]
    found = [
        (name, layer["drift"])
        for name, layer in zip(names, layers, strict=True)
        if layer["drift"] is not None
    ]
    if not found:
        return None
    rows = [_row(name, drift, num_experts) for name, drift in found]
    drifts = [drift for _, drift in found]
    shown = sorted(found, key=lambda one: -one[1]["first_to_last"])[:SHOWN_LAYERS]
    mean = DriftRow(
        f"mean of {number(len(found))}",
        _mean([row.between for row in rows]),
        max(row.largest for row in rows),
        _mean([row.first_to_last for row in rows]),
        _mean([row.by_chance for row in rows]),
        [],
    )
    return DriftOfModel(
        windows=_windows(drifts),
        mean=mean,
        most=[_row(name, drift, num_experts) for name, drift in shown],
        shown=shown,
        num_layers=len(found),
        num_without=len(layers) - len(found),
        placed=_placed(drifts, num_experts),
    )


def _row(name: str, drift: Drift, num_experts: int) -> DriftRow:
    moved = [
        f"{one['expert']} {one['shares'][0] * num_experts:.1f}→"
        f"{one['shares'][-1] * num_experts:.1f}"
        for one in drift["experts"][:3]
    ]
    return DriftRow(
        name,
        _mean(drift["between"]),
        max(drift["between"]),
        drift["first_to_last"],
        drift["by_chance"],
        moved,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _windows(drifts: Sequence[Drift]) -> str:
    """The windows of all layers: their numbers, and tokens in each and in the last."""
    numbers = [len(drift["window_tokens"]) for drift in drifts]
    tokens = [drift["window_tokens"][0] for drift in drifts]
    last = [drift["window_tokens"][-1] for drift in drifts]
    words = f"{_range(numbers)} windows of {_range(tokens)} tokens"
    return words if last == tokens else f"{words} (the last: {_range(last)})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _placed(drifts: Sequence[Drift], num_experts: int) -> Placed | None:
    most = max(len(drift["window_tokens"]) for drift in drifts)
    layers = [one["placed_by_first"] for one in drifts if len(one["window_tokens"]) == most]
    if layers[0]["num_ranks"] == num_experts:
        return None
    return Placed(
        layers[0]["num_ranks"],
        [_mean(values) for values in zip(*(one["balanced"] for one in layers), strict=True)],
        [_mean(values) for values in zip(*(one["contiguous"] for one in layers), strict=True)],
    )


def drift_words(model: Model, names: Sequence[str]) -> str:
    """The paragraph on drift."""
    found = drift_of(model, names)
    if found is None:
        return NEEDS
    mean, several, placed = found.mean, found.num_layers > 1, found.placed
    text = (
        f"Over {found.windows} the load of neighbouring windows differs by "
        f"{percent(mean.between)}, that of the first and the last by {percent(mean.first_to_last)}"
        + (f", in the mean over {plural(found.num_layers, 'layer')}" if several else "")
        + f"; chance alone makes {percent(mean.by_chance)}."
    )
    if mean.first_to_last < _ABOVE_CHANCE * mean.by_chance:
        text += " That is hardly more: no drift, or windows too short to show it."
    else:
        text += _moves(*found.shown[0], model["num_experts"], several)
    if placed is not None:
        text += (
            f" A placement on {plural(placed.num_ranks, 'rank')} balanced by the first window has "
            f"{times(placed.balanced[0])} the mean load on the busiest rank there, and "
            f"{times(_mean(placed.balanced[1:]))} in the later windows; the contiguous one "
            f"{times(_mean(placed.contiguous[1:]))}."
        )
    if found.num_without:
        text += f" Too few tokens for windows in {plural(found.num_without, 'layer')}."
    return text


def _moves(name: str, drift: Drift, num_experts: int, several: bool) -> str:
    if not drift["experts"]:
        return ""
    one = drift["experts"][0]
    ratios = [share * num_experts for share in one["shares"]]
    where = f" in {name}, which has the most drift" if several else ""
    return (
        f" Expert {one['expert']} moves most{where}: {times(ratios[0])} the mean load in the first "
        f"window, {times(min(ratios))} to {times(max(ratios))} over all, "
        f"{times(ratios[-1])} in the last."
    )
