"""Results for the terminal: one table per method, then losses, violations and unavailable peers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tessera.tools.bench.judgement import (
    SPEED_METHODS,
    best,
    judged_methods,
    less_flattering,
    ratio,
    speeds,
)
from tessera.tools.bench.load import SPOILED_ABOVE

# What the errors of a row are.
ERROR = (
    "norm of the difference from the layer in float64 with the weights before quantisation, over "
    "the norm of that layer, for inputs with outlier channels"
)

# Marks a time that other programs spoiled.
_MARK = "*"


def figure(us: float) -> str:
    """A number with about three significant digits."""
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


def print_report(console: Console, document: Mapping[str, Any]) -> None:
    """Print the complete results."""
    print_head(console, document)
    for method, meaning in document["methods"].items():
        console.print()
        console.print(f"{method}: {meaning}")
        if method in SPEED_METHODS:
            console.print(_comparison(document, method))
            for line in _losses(document, method):
                console.print(line)
        else:
            console.print(_listing(document, method))
    if any("errors" in row for row in rows(document)):
        console.print()
        console.print(f"error: {ERROR}")
        console.print(_errors(document))
    console.print()
    for line in _verdicts(document):
        console.print(line)
    print_remarks(console, document)


def print_head(console: Console, document: Mapping[str, Any]) -> None:
    """The machine and build of the results."""
    where = document.get("gpu", document["machine"])
    others = {row["op"]: None for row in rows(document) if row["op"] != "align_block_size"}
    parts = [where, *others, f"commit {(document['commit'] or 'unknown')[:10]}", "us per call"]
    console.print("; ".join(parts))


def print_remarks(console: Console, document: Mapping[str, Any]) -> None:
    """Contenders that could not be measured, and problems of those that were."""
    for line in _remarks(document):
        console.print(line)


def kinds_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The kind of every contender."""
    return {name: one["kind"] for name, one in document["contenders"].items()}


def _comparison(document: Mapping[str, Any], method: str) -> Table:
    kinds = kinds_of(document)
    shown = [
        name
        for name, kind in kinds.items()
        if kind in ("tessera", "peer", "part", "related")
        and any(speeds(r["us"], method).get(name) for r in rows(document))
    ]
    related = [name for name in shown if kinds[name] == "related"]
    compared = ["floor", "peer"] if "peer" in kinds.values() or not related else ["floor"]
    titles = {"floor": "/ floor", "peer": "/ best peer"}
    table = Table("shape", box=None, pad_edge=False, header_style="bold")
    ratio_titles = [titles[kind] for kind in compared] + [f"/ {name}" for name in related]
    for name in [*shown, "floor", *ratio_titles]:
        table.add_column(name, justify="right")
    for row in rows(document):
        times = speeds(row["us"], method)
        if not times:
            continue
        floor, ours = (best(times, kinds, kind) for kind in ("floor", "tessera"))
        ratios = [ratio(row["us"], kinds, method, kind) for kind in compared]
        ratios += [ours[1] / times[name] if ours and name in times else None for name in related]
        wrong = " wrong" if method in row["below_floor"] else ""
        table.add_row(
            row["shape"],
            *(cell(row, name, method) for name in shown),
            cell(row, floor[0], method) + wrong if floor else "-",
            *("-" if one is None else f"{one:.2f}" for one in ratios),
        )
    return table


def cell(row: Mapping[str, Any], name: str, method: str) -> str:
    """A time: a difference has its spread in brackets, a spoiled time has a mark."""
    us = row["us"].get(name, {}).get(method)
    if us is None:
        return "-"
    spread = row["spread_us"].get(name, {}).get(method)  # a floor that is computed has none
    shown = f" ({figure(spread)})" if method == "chain" and spread is not None else ""
    return figure(us) + shown + _MARK * (method in row["spoiled"].get(name, {}))


def _listing(document: Mapping[str, Any], method: str) -> Table:
    """A table of contenders by shapes, for methods that measure the call, not the shape."""
    measured = [row for row in rows(document) if speeds(row["us"], method)]
    table = Table("call", box=None, pad_edge=False, header_style="bold")
    for row in measured:
        table.add_column(row["shape"], justify="right")
    names = dict.fromkeys(name for row in measured for name in speeds(row["us"], method))
    for name in names:
        table.add_row(name, *(cell(row, name, method) for row in measured))
    return table


def _errors(document: Mapping[str, Any]) -> Table:
    found = [(row["shape"], row.get("errors", {})) for row in rows(document)]
    names = [name for name in kinds_of(document) if any(name in each for _, each in found)]
    table = Table("shape", box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="right")
    for shape, each in found:
        table.add_row(shape, *(f"{each[name]:.4f}" if name in each else "-" for name in names))
    return table


def _losses(document: Mapping[str, Any], method: str) -> Iterator[str]:
    kinds = kinds_of(document)
    for row in rows(document):
        times = speeds(row["us"], method)
        ours, peer = best(times, kinds, "tessera"), best(times, kinds, "peer")
        if ours and peer and ours[1] > peer[1]:
            yield (
                f"slower than {peer[0]} on {row['shape']}: {figure(ours[1])} against "
                f"{figure(peer[1])}"
            )


def _verdicts(document: Mapping[str, Any]) -> Iterator[str]:
    """The number of shapes on which Tessera is faster than every peer, per method and for both."""
    kinds = kinds_of(document)
    by_method: dict[str, list[float]] = {}
    num_spoiled: Counter[str] = Counter()
    for row in rows(document):
        judged = judged_methods(row["us"])
        for method in judged:
            if (one := ratio(row["us"], kinds, method, "peer")) is not None:
                by_method.setdefault(method, []).append(one)
                num_spoiled[method] += any(method in each for each in row["spoiled"].values())
        least = less_flattering(row["us"], kinds, "peer")
        if len(judged) > 1 and least is not None:
            by_method.setdefault(f"the less flattering of {' and '.join(judged)}", []).append(least)
    for method, ratios in by_method.items():
        faster = sum(one < 1 for one in ratios)
        spoiled = f", {num_spoiled[method]} of which have spoiled times" * bool(num_spoiled[method])
        yield f"by {method}: faster than the best peer on {faster} of {len(ratios)} shapes{spoiled}"


def _remarks(document: Mapping[str, Any]) -> Iterator[str]:
    for name, one in document["contenders"].items():
        if one["unavailable"]:
            yield f"{name}: unavailable: {one['unavailable']}"
    for method, why in document["methods_unavailable"].items():
        yield f"{method}: unavailable: {why}"
    titles = {
        "refusals": "not measured",
        "failures": "failed",
        "violations": "breaks the contract",
    }
    for key, title in titles.items():
        for name, (shape, why, count) in _first_of_each(document, key).items():
            others = f", and {count - 1} more shapes" if count > 1 else ""
            yield f"{name}: {title} on {shape}{others}: {why}"
    if shares := [
        share
        for row in rows(document)
        for by_method in row["spoiled"].values()
        for share in by_method.values()
    ]:
        yield (
            f"{_MARK} spoiled by other programs: in most repetitions of such a figure, the "
            "threads of this process waited for a processor, added up over all threads, for more "
            f"than {SPOILED_ABOVE:.0%} of its duration, here {min(shares):.0%} to "
            f"{max(shares):.0%}; measure again on an idle machine"
        )
    for row in rows(document):
        for name, by_method in row["within_noise"].items():
            for method, us in by_method.items():
                spread = figure(row["spread_us"][name][method])
                yield (
                    f"{name}: within the noise on {row['shape']}, method {method}: "
                    f"{figure(us)} with an interquartile range of {spread}"
                )
        for method, times in row["below_floor"].items():
            for name, time in times.items():
                yield (
                    f"the floor of {row['shape']} is wrong, method {method}: {name} takes "
                    f"{figure(time)}"
                )


def _first_of_each(document: Mapping[str, Any], key: str) -> dict[str, tuple[str, str, int]]:
    """For each contender, the first shape with such a remark, the remark, and their number."""
    found: dict[str, tuple[str, str, int]] = {}
    for row in rows(document):
        for name, why in row[key].items():
            text = _text(why)
            shape, first, count = found.get(name, (row["shape"], text, 0))
            found[name] = (shape, first, count + 1)
    return found


def _text(why: str | list[str] | dict[str, str]) -> str:
    if isinstance(why, dict):
        return "; ".join(f"method {method}: {text}" for method, text in why.items())
    return why if isinstance(why, str) else "; ".join(why)


def rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results by shape."""
    found: list[dict[str, Any]] = document["rows"]
    return found
