"""Figures made of lines: padding and cost over block size, imbalance over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

from tessera.tools.inspection.document import Model
from tessera.tools.report.drawing import Drawing
from tessera.tools.report.plot import LEFT, NARROW, Figure, Plot, round_step
from tessera.tools.report.tables import PLACEMENTS, Advice, Comparison, advice
from tessera.tools.report.words import number, percent, times

_BATCH_SIZES = (1, 16, 256, 4096, 65536)  # those that have a line
_TOP, _BOTTOM, _HEIGHT = 30, 250, 290


def padding(model: Model) -> Figure:
    """Share of padding over the block size, a line for each of some batch sizes."""
    rows = _drawn(model)
    drawing = Drawing(NARROW, _HEIGHT)
    drawing.text(0, 14, "padding, share of all slots")
    plot = Plot(drawing, LEFT, _TOP, NARROW - 76, _BOTTOM, 1.0)
    plot.scale(0.25, "{:.0%}".format)
    _over_block_size(plot, rows, lambda row, size: row.padding[size])
    return Figure(
        "padding",
        "Padding over block size",
        "A line for each batch size. A ring marks the recommended block size.",
        "Lines of padding over the block size. "
        + _in_words(rows, lambda row: row.padding, percent),
        drawing,
    )


def costs(model: Model) -> Figure:
    """Modelled cost over the block size, for the same batch sizes; the scale is logarithmic."""
    rows = _drawn(model)
    drawing = Drawing(NARROW, _HEIGHT)
    drawing.text(0, 14, "modelled cost over the cheapest")
    highest = math.log2(max(cost for row in rows for cost in row.costs.values()))
    plot = Plot(drawing, LEFT, _TOP, NARROW - 76, _BOTTOM, max(highest, 0.2) * 1.05)
    plot.scale(max(0.5, round(highest / 5)), lambda power: f"{2**power:.2g}×")
    _over_block_size(plot, rows, lambda row, size: math.log2(row.costs[size]))
    return Figure(
        "cost",
        "Modelled cost over block size",
        "1× is the cheapest block size of each batch size. A flat line leaves the choice free.",
        "Lines of the modelled cost over the block size. "
        + _in_words(rows, lambda row: row.costs, times),
        drawing,
    )


def _drawn(model: Model) -> list[Advice]:
    return [row for row in advice(model) if row.batch_size in _BATCH_SIZES]


def _over_block_size(plot: Plot, rows: list[Advice], value: Callable[[Advice, int], float]) -> None:
    sizes = list(rows[0].padding)
    xs = plot.places(sizes, "block size")
    for i, row in enumerate(rows):
        plot.series([(xs[size], plot.y(value(row, size))) for size in sizes], i, f"series-{i}")
    for row in rows:
        x, y = xs[row.block_size], plot.y(value(row, row.block_size))
        plot.drawing.path(f"M{x:.1f} {y:.1f}m-8 0a8 8 0 1 0 16 0a8 8 0 1 0-16 0z", "ring")
    plot.drawing.text(NARROW, 14, "tokens in a batch", "end")
    ends = [(value(row, sizes[-1]), number(row.batch_size)) for row in rows]
    plot.end_labels(xs[sizes[-1]], ends)


def _in_words(
    rows: list[Advice], of: Callable[[Advice], dict[int, float]], words: Callable[[float], str]
) -> str:
    said = []
    for row in rows:
        values = of(row)
        first, last = min(values), max(values)
        said.append(
            f"Batches of {number(row.batch_size)}: {words(values[first])} at block size {first}, "
            f"{words(values[last])} at {last}, {words(values[row.block_size])} at the recommended "
            f"{row.block_size}."
        )
    return " ".join(said)


def ranks(compared: Comparison) -> Figure:
    """Load of the busiest rank over the number of ranks, a line for each placement."""
    rows = compared.rows
    several = compared.num_layers > 1
    drawing = Drawing(NARROW, _HEIGHT)
    drawing.text(0, 14, "busiest rank's load over the mean,")
    drawing.text(0, 30, f"on {compared.tokens}")
    above = max(one.worst for row in rows.values() for one in row.values()) - 1
    plot = Plot(drawing, LEFT, _TOP + 16, NARROW - 124, _BOTTOM, max(above, 0.1) * 1.08)
    plot.scale(round_step(plot.highest, 5), lambda value: f"{1 + value:g}×")
    xs = plot.places(list(rows), "ranks")
    ends = []
    kinds = ("series-4", "series-2 dashed", "series-0 dotted")
    for shape, (name, kind) in enumerate(zip(PLACEMENTS, kinds, strict=True)):
        if name not in compared.placements:
            continue
        found = {ranks: row[name] for ranks, row in rows.items()}
        if several and shape == 0:
            for ranks, one in found.items():
                ends_of_range = [(xs[ranks], plot.y(value - 1)) for value in (one.best, one.worst)]
                drawing.line(ends_of_range, "range")
        plot.series([(xs[n], plot.y(one.mean - 1)) for n, one in found.items()], shape, kind)
        ends.append((found[max(found)].mean - 1, PLACEMENTS[name]))
    plot.end_labels(max(xs.values()), ends)
    said = "; ".join(
        f"{ranks} ranks: "
        + ", ".join(f"{PLACEMENTS[name]} {times(one.mean)}" for name, one in row.items())
        for ranks, row in rows.items()
    )
    bars = " Bars: the range of the contiguous placement over the layers."
    return Figure(
        "ranks",
        "Imbalance over ranks",
        f"1× is perfectly even. {compared.reading}{bars if several else ''}",
        f"Lines of the busiest rank's load over the mean, on {compared.tokens}. {said}.",
        drawing,
    )
