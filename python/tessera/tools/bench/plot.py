"""Results as a picture: time over the number of ids, both logarithmic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tessera.tools.bench.judgement import (
    LONG_CALL_METHODS,
    SPEED_METHODS,
    best,
    judged_methods,
    speeds,
)
from tessera.tools.bench.report import kinds_of, rows
from tessera.tools.bench.shapes import Shape
from tessera.tools.output_files import write_files

_TITLES = {"graph": "graph: calls back to back", "chain": "chain: between other kernels"}


def require_matplotlib(path: Path) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn."""
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot: expected a .png or .svg file, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "--plot: matplotlib is not installed: pip install matplotlib, or pip install "
            "'.[bench]' in a checkout of Tessera"
        ) from None


def require_drawable(path: Path, shapes: Sequence[Shape], methods: Sequence[str]) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn or would be empty."""
    drawn = [method for method in SPEED_METHODS if method not in LONG_CALL_METHODS]
    if not set(methods) & set(drawn):
        known = ", ".join(drawn)
        raise ValueError(f"--plot: expected one of the methods {known}, got {', '.join(methods)}")
    if not any(_is_plain(dataclasses.asdict(shape)) for shape in shapes):
        raise ValueError("--plot: nothing to draw: expected shapes of uniform int32 ids")
    require_matplotlib(path)


def _is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a row has default properties except for its size."""
    is_usual = row["skew"] == "uniform" and row["dtype"] == "int32" and row["map"] == "none"
    return is_usual and row["shift_bytes"] is None and not row["trace"]


def lines(document: Mapping[str, Any], method: str) -> dict[str, list[tuple[int, float]]]:
    """Points (ids, us) by a method of Tessera, each peer and the floor, by the number of ids.

    If several shapes have the same number of ids, the point is their geometric mean. Variants of a
    shape are left out, because the lines show the effect of the size.
    """
    kinds = kinds_of(document)
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows(document):
        if not _is_plain(row):
            continue
        times = speeds(row["us"], method)
        drawn = [name for name in times if kinds.get(name) in ("tessera", "peer")]
        points = {name: times[name] for name in drawn}
        if floor := best(times, kinds, "floor"):
            points["floor"] = floor[1]
        for name, time in points.items():
            found.setdefault(name, {}).setdefault(row["num_tokens"] * row["top_k"], []).append(time)
    return {
        name: [(ids, _geometric_mean(times)) for ids, times in sorted(by_ids.items())]
        for name, by_ids in found.items()
    }


def beaten_floor(drawn: Mapping[str, list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The floor's points that are above another line."""
    others = [dict(points) for name, points in drawn.items() if name != "floor"]
    return [
        (ids, us)
        for ids, us in drawn.get("floor", [])
        if any(other.get(ids, us) < us for other in others)
    ]


def _geometric_mean(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def plot(document: Mapping[str, Any], path: Path, note: str = "", *, force: bool = True) -> None:
    """Draw the lines, one panel per judged method; the same results give the same file.

    `note` goes into the file's description. Without `force` a file that is there is not replaced.
    """
    require_matplotlib(path)
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "tessera"
    from matplotlib import pyplot

    methods = dict.fromkeys(one for row in rows(document) for one in judged_methods(row["us"]))
    panels = {one: drawn for one in methods if (drawn := lines(document, one))}
    if not panels:
        raise ValueError("--plot: nothing to draw: expected shapes of uniform int32 ids")
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(8 * len(panels), 5), sharey=True, squeeze=False
    )
    kinds = kinds_of(document)
    # One color per name, even if a panel lacks some of them.
    names = dict.fromkeys(name for drawn in panels.values() for name in drawn)
    colors = {name: f"C{index}" for index, name in enumerate(names)} | {"floor": "black"}
    for axes, (method, drawn) in zip(grid[0], panels.items(), strict=True):
        for name, points in drawn.items():
            ours, is_floor = kinds.get(name) == "tessera", name == "floor"
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                linewidth=2.5 if ours else 1.2,
                linestyle="--" if is_floor else "-",
                color=colors[name],
                marker="o" if ours else ".",
            )
        if beaten := beaten_floor(drawn):
            axes.plot(
                *zip(*beaten, strict=True),
                label="floor, beaten here",
                linestyle="none",
                color="black",
                marker="o",
                markersize=11,
                fillstyle="none",
            )
        axes.set(xscale="log", yscale="log", xlabel="ids", ylabel="us per call")
        axes.set_title(_TITLES.get(method, method))
        axes.grid(which="both", alpha=0.25)
        axes.legend()
    figure.suptitle(f"align_block_size on {document.get('gpu', document['machine'])}")
    description = {"Description": note} if note else {}
    no_date = {"Date": None} if path.suffix == ".svg" else {}
    metadata = {**description, **no_date}

    def save(file: IO[bytes]) -> None:
        figure.savefig(file, format=path.suffix[1:], metadata=metadata, bbox_inches="tight")

    try:
        write_files({path: save}, force=force)
    finally:
        pyplot.close(figure)
