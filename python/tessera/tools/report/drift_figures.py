"""Figures of drift: heat maps of experts over windows, and what a placement loses."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.tools.inspection.document import Drift, Model
from tessera.tools.report.drawing import Drawing
from tessera.tools.report.drift import DriftOfModel, Placed, drift_of
from tessera.tools.report.load_figures import heat_legend, heat_of
from tessera.tools.report.plot import LEFT, NARROW, RIGHT, Figure, Plot, round_step
from tessera.tools.report.words import number, plural, slug, times

_CELL = 16


def drift_figures(model: Model, names: Sequence[str]) -> tuple[Figure, ...]:
    """Lines of the distances over the windows, and heat maps of the layers with most drift."""
    found = drift_of(model, names)
    if found is None:
        return ()
    alone = len(names) == 1
    maps = [_heat_map(name, drift, model["num_experts"], alone) for name, drift in found.shown]
    return (*([] if found.placed is None else [_placements(found, found.placed)]), *maps)


def _placements(found: DriftOfModel, placed: Placed) -> Figure:
    balanced, contiguous = placed.balanced, placed.contiguous
    drawing = Drawing(NARROW, 290)
    words = f"busiest of {plural(placed.num_ranks, 'rank')}, load over the mean"
    drawing.text(0, 14, words)
    above = max(*balanced, *contiguous) - 1
    plot = Plot(drawing, LEFT, 30, NARROW - 124, 250, max(above, 0.1) * 1.08)
    plot.scale(round_step(plot.highest, 5), lambda value: f"{1 + value:g}×")
    xs = list(plot.places(range(1, len(balanced) + 1), "window").values())
    for shape, (values, kind) in enumerate(
        ((contiguous, "series-4"), (balanced, "series-2 dashed"))
    ):
        points = [(x, plot.y(value - 1)) for x, value in zip(xs, values, strict=True)]
        plot.series(points, shape, kind)
    ends = [(contiguous[-1] - 1, "contiguous"), (balanced[-1] - 1, "by window 1")]
    plot.end_labels(xs[-1], ends)
    said = ", ".join(times(value) for value in balanced)
    return Figure(
        "drift_ranks",
        "What a placement loses over the windows",
        "1× is perfectly even. Dashed: a placement balanced by the loads of the first window."
        + (f" Means over {plural(found.num_layers, 'layer')}." if found.num_layers > 1 else ""),
        f"Lines of the busiest rank's load over the mean, by window. By window 1: {said}.",
        drawing,
    )


def _heat_map(layer_name: str, drift: Drift, num_experts: int, alone: bool) -> Figure:
    experts, num_windows = drift["experts"], len(drift["window_tokens"])
    left, top = 52, 24
    bottom, column = top + _CELL * len(experts), (NARROW - RIGHT - left) / num_windows
    drawing = Drawing(NARROW, bottom + 90)
    drawing.text(0, 14, "load over the mean load, by expert and window")
    for row, one in enumerate(experts):
        y = top + _CELL * row
        drawing.text(left - 6, y + 12, str(one["expert"]), "end")
        for window, share in enumerate(one["shares"]):
            ratio = share * num_experts
            title = f"expert {one['expert']}, window {window + 1}: {times(ratio)} the mean"
            x = left + column * window
            drawing.rect(x, y, column, _CELL, f"heat-{heat_of(ratio)}", title)
    drawing.rect(left, top, column * num_windows, _CELL * len(experts), "frame")
    for window in range(0, num_windows, 3):
        drawing.text(left + column * (window + 0.5), bottom + 18, str(window + 1), "middle")
    drawing.text((left + NARROW - RIGHT) / 2, bottom + 36, "window", "middle")
    heat_legend(drawing, bottom)
    said = "; ".join(
        f"expert {one['expert']}: {times(one['shares'][0] * num_experts)} in the first window, "
        f"{times(one['shares'][-1] * num_experts)} in the last"
        for one in experts
    )
    return Figure(
        "drift" if alone else f"drift_{slug(layer_name)}",
        f"Experts whose load moves most, {layer_name}",
        f"A row for each expert, a column for each window of {number(drift['window_tokens'][0])} "
        "tokens.",
        f"Heat map of loads over the mean. {said}.",
        drawing,
    )
