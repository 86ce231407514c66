"""Results as a picture: time over the number of ids, both logarithmic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.bench.judgement import SPEED_METHODS, best, speeds
from tessera.bench.report import kinds_of, rows


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


def lines(document: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Points (ids, us) of Tessera, each peer and the floor, by the number of ids.

    Where several shapes have as many ids, the point is their geometric mean. Variants of a shape
    are left out: the lines are about the size.
    """
    kinds = kinds_of(document)
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows(document):
        plain = row["skew"] == "uniform" and row["dtype"] == "int32" and row["map"] == "none"
        method = next((one for one in SPEED_METHODS if speeds(row["us"], one)), None)
        if not plain or row["shift_bytes"] is not None or row["trace"] or method is None:
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
    figure.savefig(path, metadata={**description, **no_date}, bbox_inches="tight")
    pyplot.close(figure)
