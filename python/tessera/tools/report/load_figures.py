"""Figures of load over the mean load: bars of a layer's experts, and a heat map of all layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tessera.tools.inspection.document import Layer, Model
from tessera.tools.inspection.load import HOT_OVER_MEAN
from tessera.tools.report.drawing import Drawing
from tessera.tools.report.plot import LEFT, NARROW, RIGHT, WIDE, Figure, Plot, round_step
from tessera.tools.report.tables import over_mean
from tessera.tools.report.words import number, percent, slug, times

_NARROW_EXPERTS = 128  # up to this many fit on a phone
_HEAT_EDGES = (0.25, 0.5, 1.0, 2.0, 4.0)
_HEAT_NAMES = ("none", "< ¼", "¼ to ½", "½ to 1", "1 to 2", "2 to 4", "≥ 4")
_TOLD_LAYERS = 12


def _width(num_experts: int) -> int:
    return NARROW if num_experts <= _NARROW_EXPERTS else WIDE


def loads(layer: Layer, layer_name: str, alone: bool) -> tuple[Figure, Figure]:
    """Load of every expert of a layer: by id, and hottest first.

    If the layer is not `alone`, its files are named by the layer.
    """
    ratios, found = over_mean(layer), layer["load"]
    by_load = sorted(range(len(ratios)), key=lambda expert: -ratios[expert])
    end = "" if alone else f"_{slug(layer_name)}"
    hot = ", ".join(f"{one['expert']} ({times(one['over_mean'])})" for one in found["hot_experts"])
    dead = ", ".join(map(str, found["dead_experts"][:10])) or "none"
    dead += " and more" if len(found["dead_experts"]) > 10 else ""
    eighth = max(1, len(ratios) // 8)
    share = percent(sum(ratios[expert] for expert in by_load[:eighth]) / len(ratios))
    take = "takes" if eighth == 1 else "take"
    taken = f"The hottest {eighth} of {number(len(ratios))} experts {take} {share} of all pairs."
    return (
        Figure(
            f"load{end}",
            f"Load per expert, {layer_name}",
            "Dashed: the mean."
            + (" Dotted: twice the mean; experts from there on are hot." if hot else "")
            + (
                " Marks under the axis: dead experts, which get no token."
                if found["dead_experts"]
                else ""
            ),
            f"Bars of every expert's load. The hottest takes {times(found['max_over_mean'])} the "
            f"mean. Hot experts: {hot or 'none'}. Dead experts: {dead}.",
            _bars(ratios, range(len(ratios)), "expert"),
        ),
        Figure(
            f"load_sorted{end}",
            f"The same, hottest first, {layer_name}",
            taken,
            f"Bars of every expert's load, sorted. {taken}",
            _bars(ratios, by_load, "experts, hottest first"),
        ),
    )


def _bars(ratios: Sequence[float], experts: Sequence[int], words: str) -> Drawing:
    """Bars in the order of `experts`; if these are a range, their ids are on the axis."""
    width = _width(len(ratios))
    drawing = Drawing(width, 240)
    drawing.text(0, 14, "load over the mean load")
    highest = max(1.0, *ratios) * 1.08
    plot = Plot(drawing, LEFT, 30, width - RIGHT, 200, highest)
    plot.scale(round_step(highest, 5), "{:g}×".format)
    gap = (plot.right - plot.left) / len(experts)
    by_id = isinstance(experts, range)
    titled = by_id and len(experts) <= _NARROW_EXPERTS
    paths = {"bar": "", "bar hot": "", "dead": ""}
    for i, expert in enumerate(experts):
        x, ratio = plot.left + gap * i, ratios[expert]
        kind = "bar hot" if ratio >= HOT_OVER_MEAN else "bar"
        bar, height = gap * (0.8 if gap > 3 else 1), plot.bottom - plot.y(ratio)
        if not ratio:
            paths["dead"] += f"M{x:.1f} {plot.bottom + 2}h{bar:.1f}v4h-{bar:.1f}z"
        elif titled:
            title = f"expert {expert}: {times(ratio)} the mean"
            drawing.rect(x, plot.y(ratio), bar, height, kind, title)
        else:
            paths[kind] += f"M{x:.1f} {plot.bottom}v-{height:.1f}h{bar:.1f}v{height:.1f}"
    for kind, commands in paths.items():
        drawing.path(commands, kind)
    plot.across(1.0, "mean")
    if max(ratios) >= HOT_OVER_MEAN:
        plot.across(HOT_OVER_MEAN, "threshold")
    if by_id:
        _name_hot(plot, ratios)
        _expert_axis(drawing, plot.left, gap, len(experts), plot.bottom)
    plot.below(words)
    return drawing


def _name_hot(plot: Plot, ratios: Sequence[float]) -> None:
    """Write ids over hot bars, hottest first; skip ids that would touch a bar or another id."""
    gap = (plot.right - plot.left) / len(ratios)
    named = list[tuple[float, float, float]]()  # middle, base, half of the width
    for expert in sorted(range(len(ratios)), key=lambda expert: -ratios[expert]):
        if ratios[expert] < HOT_OVER_MEAN:
            break
        half = 4.0 * len(str(expert))
        x, y = plot.left + gap * (expert + 0.5), plot.y(ratios[expert]) - 3
        reach = int(half / gap)
        beside = ratios[max(0, expert - reach) : expert + reach + 1]
        free = all(abs(x - a) > half + c + 3 or abs(y - b) > 13 for a, b, c in named)
        if ratios[expert] == max(beside) and free:
            named.append((x, y, half))
            plot.drawing.text(x, y, str(expert), "middle hot")


def _expert_axis(drawing: Drawing, left: float, gap: float, num_experts: int, y: float) -> None:
    step = max(1, int(round_step(num_experts, 9)))
    for expert in range(0, num_experts, step):
        drawing.text(left + gap * (expert + 0.5), y + 18, number(expert), "middle")


def load_over_layers(model: Model, names: Sequence[str]) -> Figure:
    """Heat map: a row for each layer, a column for each expert."""
    layers, num_experts = model["layers"], model["num_experts"]
    width, cell = _width(num_experts), max(4, min(24, 600 // len(layers)))
    short = [name.removeprefix("layer ")[:16] for name in names]
    left, top = 14 + 8 * max(map(len, short)), 24
    bottom, column = top + cell * len(layers), (width - RIGHT - left) / num_experts
    drawing = Drawing(width, bottom + 90)
    drawing.text(0, 14, "load over the mean load, by layer and expert")
    rows = [""] * len(_HEAT_NAMES)  # paths in units of cells, which the transformation scales
    for row, layer in enumerate(layers):
        expert = 0
        for heat, run in itertools.groupby(map(heat_of, over_mean(layer))):
            length = len(list(run))
            rows[heat] += f"M{expert} {row}.5h{length}"
            expert += length
        if row % -(-14 // cell) == 0:
            drawing.text(left - 6, top + cell * (row + 0.5) + 4, short[row], "end")
    scaled = f"translate({left} {top}) scale({column:.4f} {cell})"
    for heat, commands in enumerate(rows):
        drawing.path(commands, f"cells cells-{heat}", scaled)
    drawing.rect(left, top, column * num_experts, cell * len(layers), "frame")
    _expert_axis(drawing, left, column, num_experts, bottom)
    drawing.text((left + width - RIGHT) / 2, bottom + 36, "expert", "middle")
    heat_legend(drawing, bottom)
    said = [
        f"{name}: at most {times(layer['load']['max_over_mean'])}, "
        f"{number(len(layer['load']['dead_experts']))} dead"
        for name, layer in zip(names, layers, strict=True)
    ]
    more = f"; and {len(said) - _TOLD_LAYERS} layers more" if len(said) > _TOLD_LAYERS else ""
    return Figure(
        "load_over_layers",
        "Load over layers",
        "A row for each layer, a column for each expert, and below what the shades mean.",
        f"Heat map of every expert's load over the mean. {'; '.join(said[:_TOLD_LAYERS])}{more}.",
        drawing,
    )


def heat_of(ratio: float) -> int:
    """The class of a load over the mean, by which it is shaded."""
    return 1 + sum(ratio >= edge for edge in _HEAT_EDGES) if ratio else 0


def heat_legend(drawing: Drawing, bottom: float) -> None:
    """What the shades mean, below a heat map that ends at `bottom`."""
    for heat, words in enumerate(_HEAT_NAMES):
        x = (drawing.width - NARROW) / 2 + 8 + 55 * heat
        drawing.rect(x, bottom + 52, 54, 14, f"heat-{heat}")
        drawing.text(x + 27, bottom + 82, words, "middle")
