"""Two logs side by side: rows of the tables, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tessera.tools.inspection.document import Comparison
from tessera.tools.report.drawing import Drawing
from tessera.tools.report.plot import LEFT, NARROW, Figure, Plot, round_step
from tessera.tools.report.words import number, percent, plural, times
from tessera.tools.routing_files import layer_name

_TOLD_RANKS = 8
_SHOWN_LAYERS = 4
READING = (
    "All figures are of the layers that both logs have. Ranks are judged on all tokens. "
    "Contiguous: neighbouring experts together; in hindsight: balanced by the loads that judge; "
    "by first: balanced by the loads of the first log, and judged on the second."
)
_SERIES = ("series-4", "series-2 dashed")


class Row(NamedTuple):
    """A row of a table, in words: what, in the first log, in the second, and the change."""

    what: str
    first: str
    second: str
    change: str


def figure_rows(compared: Comparison) -> list[Row]:
    """The figures of both logs; means over the layers that both have."""
    first, second = compared["first"], compared["second"]
    several = compared["num_layers"] > 1
    rows = []
    if first["num_tokens"] or second["num_tokens"]:  # loads have none
        rows.append(_counts("tokens", first["num_tokens"], second["num_tokens"]))
    rows += [
        _counts("pairs", first["num_pairs"], second["num_pairs"]),
        _plain(
            "entropy / log2 E",
            first["entropy_bits"] / (first["max_entropy_bits"] or 1),
            second["entropy_bits"] / (second["max_entropy_bits"] or 1),
        ),
        _plain("Gini", first["gini"], second["gini"]),
        _plain("max/mean", first["max_over_mean"], second["max_over_mean"]),
    ]
    if several:
        worst = [side["largest_max_over_mean"] for side in (first, second)]
        rows.append(_plain("max/mean, worst layer", *worst))
    rows += [
        _counts("hot experts, 2 x mean", first["num_hot"], second["num_hot"]),
        _counts("dead experts", first["num_dead"], second["num_dead"]),
    ]
    return rows


def _counts(what: str, first: int, second: int) -> Row:
    change = second - first
    return Row(what, f"{first:,}", f"{second:,}", f"{change:+,}" if change else "0")


def _plain(what: str, first: float, second: float) -> Row:
    # Of the rounded values, as a reader subtracts them.
    change = round(second, 2) - round(first, 2)
    return Row(what, f"{first:.2f}", f"{second:.2f}", f"{change:+.2f}" if change else "0")


class RanksRow(NamedTuple):
    """Largest over mean load of some ranks, under placements of each log, in words.

    by_first: balanced by the first log, on the second; empty if experts are not compared.
    """

    num_ranks: str
    contiguous: Row
    in_hindsight: Row
    by_first: str


def rank_rows(compared: Comparison) -> list[RanksRow]:
    """The balance of the ranks, for numbers of ranks that both logs have experts for."""
    placed = {one["num_ranks"]: one["on_second"] for one in compared["placed_by_first"]}
    return [
        RanksRow(
            str(one["num_ranks"]),
            _plain("contiguous", one["contiguous"], other["contiguous"]),
            _plain("in hindsight", one["in_hindsight"], other["in_hindsight"]),
            f"{placed[one['num_ranks']]:.2f}" if placed else "",
        )
        for one, other in zip(compared["first"]["ranks"], compared["second"]["ranks"], strict=False)
    ]


class AdviceRow(NamedTuple):
    """The block size to use for a batch size in each log, and its share of padding."""

    batch_size: str
    first: str
    second: str
    first_padding: str
    second_padding: str
    differs: bool


def advice_rows(compared: Comparison) -> list[AdviceRow]:
    """The advice of both logs; none for loads."""
    return [
        AdviceRow(
            number(one["batch_size"]),
            str(one["block_size"]),
            str(other["block_size"]),
            percent(one["padding_share"]),
            percent(other["padding_share"]),
            one["block_size"] != other["block_size"],
        )
        for one, other in zip(
            compared["first"]["advice"], compared["second"]["advice"], strict=True
        )
    ]


def expert_rows(compared: Comparison) -> list[tuple[str, Row]]:
    """A layer and an expert whose load changed most, as loads over the mean."""
    num_experts = compared["first"]["num_experts"]
    return [
        (
            "" if one["layer"] is None else layer_name(one["layer"]),
            _plain(str(one["expert"]), one["first"] * num_experts, one["second"] * num_experts),
        )
        for one in compared["experts"]
    ]


def sides(compared: Comparison) -> list[str]:
    """What the two logs are, each in a sentence."""
    return [
        f"{title}: {side['name']}, {plural(side['num_experts'], 'expert')}"
        for title, side in (("First", compared["first"]), ("Second", compared["second"]))
    ]


def findings(compared: Comparison) -> list[str]:
    """What the comparison says, in sentences."""
    said = []
    layers, several = compared["layers"], compared["num_layers"] > 1
    if layers:
        mean = sum(one["distance"] for one in layers) / len(layers)
        chance = sum(one["by_chance"] for one in layers) / len(layers)
        text = f"The loads differ by {percent(mean)}"
        text += f", in the mean over {plural(len(layers), 'layer')}" if several else ""
        text += f"; chance alone makes {percent(chance)}."
        if several:
            most = sorted(layers, key=lambda one: -one["distance"])[:_SHOWN_LAYERS]
            listed = ", ".join(
                f"{layer_name(one['layer'])} ({percent(one['distance'])})" for one in most
            )
            text += f" Most differ: {listed}."
        said.append(text)
    placed = {one["num_ranks"]: one["on_second"] for one in compared["placed_by_first"]}
    ranks = _TOLD_RANKS if _TOLD_RANKS in placed else max(placed, default=0)
    # With an expert for each rank, no placement is better than another.
    if placed and ranks < compared["first"]["num_experts"]:
        row = next(one for one in compared["second"]["ranks"] if one["num_ranks"] == ranks)
        said.append(
            f"A placement on {ranks} ranks balanced by the first log has {times(placed[ranks])} "
            f"the mean load on the busiest rank in the second; one balanced by the second itself "
            f"{times(row['in_hindsight'])}, the contiguous one {times(row['contiguous'])}."
        )
    rows = advice_rows(compared)
    if rows:
        other = [row.batch_size for row in rows if row.differs]
        said.append(
            f"The block size to use differs for batches of {', '.join(other)} tokens."
            if other
            else "The block size to use is the same for every batch size."
        )
    return said


def comparison_figures(compared: Comparison) -> list[Figure]:
    """Both loads, hottest experts first; and the balance of ranks, where there are any."""
    return [_loads(compared), *([_ranks(compared)] if rank_rows(compared) else [])]


def _loads(compared: Comparison) -> Figure:
    both = (compared["first"], compared["second"])
    drawing = Drawing(NARROW, 290)
    drawing.text(0, 14, "load over the mean load")
    highest = max(1.0, *(max(side["sorted_over_mean"]) for side in both)) * 1.08
    plot = Plot(drawing, LEFT, 30, NARROW - 76, 250, highest)
    plot.scale(round_step(highest, 5), "{:g}×".format)
    for kind, side in zip(_SERIES, both, strict=True):
        loads = side["sorted_over_mean"]
        gap = (plot.right - plot.left) / len(loads)
        points = [(plot.left + gap * (i + 0.5), plot.y(load)) for i, load in enumerate(loads)]
        drawing.line(points, kind)
    plot.across(1.0, "mean")
    plot.below("experts, hottest first")
    named = zip(both, ("first", "second"), strict=True)
    plot.end_labels(plot.right - 6, [(side["sorted_over_mean"][-1], name) for side, name in named])
    said = " ".join(
        f"{name}: {times(side['sorted_over_mean'][0])} the mean on the hottest, "
        f"{times(side['sorted_over_mean'][-1])} on the coldest."
        for side, name in zip(both, ("First", "Second"), strict=True)
    )
    return Figure(
        "compared_load",
        "Load per expert, hottest first",
        "Solid: the first log; dashed: the second."
        + (" Means over the layers." if compared["num_layers"] > 1 else ""),
        f"Lines of the experts' load over the mean. {said}",
        drawing,
    )


def _ranks(compared: Comparison) -> Figure:
    rows = list(zip(compared["first"]["ranks"], compared["second"]["ranks"], strict=False))
    lines: list[tuple[str, Sequence[float], str]] = [
        ("first", [one["contiguous"] for one, _ in rows], _SERIES[0]),
        ("second", [other["contiguous"] for _, other in rows], _SERIES[1]),
    ]
    if compared["placed_by_first"]:
        placed = [one["on_second"] for one in compared["placed_by_first"]]
        lines.append(("second, by first", placed, "series-0 dotted"))
    drawing = Drawing(NARROW, 290)
    drawing.text(0, 14, "busiest rank's load over the mean")
    above = max(max(values) for _, values, _ in lines) - 1
    plot = Plot(drawing, LEFT, 30, NARROW - 124, 250, max(above, 0.1) * 1.08)
    plot.scale(round_step(plot.highest, 5), lambda value: f"{1 + value:g}×")
    xs = list(plot.places([one["num_ranks"] for one, _ in rows], "ranks").values())
    for shape, (_, values, kind) in enumerate(lines):
        points = [(x, plot.y(value - 1)) for x, value in zip(xs, values, strict=True)]
        plot.series(points, shape, kind)
    plot.end_labels(xs[-1], [(values[-1] - 1, name) for name, values, _ in lines])
    said = "; ".join(f"{name}: " + ", ".join(map(times, values)) for name, values, _ in lines)
    return Figure(
        "compared_ranks",
        "Imbalance over ranks",
        "Contiguous placement"
        + (
            "; dotted: the second log under a placement balanced by the first."
            if compared["placed_by_first"]
            else "."
        ),
        f"Lines of the busiest rank's load over the mean, by number of ranks. {said}.",
        drawing,
    )
