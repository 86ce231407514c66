"""Results as a picture: time over the number of ids, both logarithmic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tessera.bench.driver import best, speeds
from tessera.bench.report import kinds_of, rows
from tessera.bench.shapes import Shape
from tessera.output_files import write_files

_METHODS = ("graph", "call", "l2")


def require_matplotlib(path: Path) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn."""
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"--plot: expected a .png or .svg file, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "--plot: matplotlib is not installed: pip install 'tessera[bench]'"
        ) from None


def require_drawable(path: Path, shapes: Sequence[Shape], methods: Sequence[str]) -> None:
    """Refuse, before anything is measured, a picture that could not be drawn or would be empty."""
    require_matplotlib(path)
    if not set(methods) & set(_METHODS):
        raise ValueError(
            f"--plot: expected one of the methods {', '.join(_METHODS)}, got {', '.join(methods)}"
        )
    if not any(_is_plain(dataclasses.asdict(shape)) for shape in shapes):
        raise ValueError("--plot: nothing to draw: expected shapes of uniform int32 ids")


def _is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a row is about the size alone."""
    is_usual = row["skew"] == "uniform" and row["dtype"] == "int32" and row["map"] == "none"
    return is_usual and row["shift_bytes"] is None and not row["trace"]


def lines(document: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Points (ids, us) of Tessera, each peer and the floor, by the number of ids.

    Where several shapes have as many ids, the point is their geometric mean. Variants of a shape
    are left out: the lines are about the size.
    """
    kinds = kinds_of(document)
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows(document):
        method = next((one for one in _METHODS if speeds(row["us"], one)), None)
        if not _is_plain(row) or method is None:
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


def _geometric_mean(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product


def plot(document: Mapping[str, Any], path: Path, note: str = "") -> None:
    """Draw the lines; `note` goes into the file's description. The same results, the same file."""
    require_matplotlib(path)
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "tessera"
    from matplotlib import pyplot

    drawn = lines(document)
    if not drawn:
        raise ValueError("--plot: nothing to draw: expected shapes of uniform int32 ids")
    figure, axes = pyplot.subplots(figsize=(8, 5))
    kinds = kinds_of(document)
    for name, points in drawn.items():
        ours, is_floor = kinds.get(name) == "tessera", name == "floor"
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            linewidth=2.5 if ours else 1.2,
            linestyle="--" if is_floor else "-",
            color="black" if is_floor else None,
            marker="o" if ours else ".",
        )
    axes.set(xscale="log", yscale="log", xlabel="ids", ylabel="us per call")
    axes.set_title(f"align_block_size on {document.get('gpu', document['machine'])}")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    description = {"Description": note} if note else {}
    no_date = {"Date": None} if path.suffix == ".svg" else {}
    metadata = {**description, **no_date}

    def save(file: IO[bytes]) -> None:
        figure.savefig(file, format=path.suffix[1:], metadata=metadata, bbox_inches="tight")

    try:
        write_files({path: save})
    finally:
        pyplot.close(figure)
