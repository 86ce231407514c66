"""Results for the terminal: one table for each method, then what is lost, broken or unavailable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tessera.bench.driver import best, speeds

_COMPARED = ("graph", "l2", "call")


def figure(us: float) -> str:
    """Three significant digits or so."""
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


def print_report(console: Console, document: Mapping[str, Any]) -> None:
    """Everything that a reader has to know of these results."""
    print_head(console, document)
    for method, meaning in document["methods"].items():
        console.print()
        console.print(f"{method}: {meaning}")
        if method in _COMPARED:
            console.print(_comparison(document, method))
            for line in _losses(document, method):
                console.print(line)
        else:
            console.print(_listing(document, method))
    console.print()
    print_remarks(console, document)


def print_head(console: Console, document: Mapping[str, Any]) -> None:
    """Where and on what the results were measured."""
    where = document.get("gpu", document["machine"])
    console.print(f"{where}; commit {(document['commit'] or 'unknown')[:10]}; us per call")


def print_remarks(console: Console, document: Mapping[str, Any]) -> None:
    """Who could not be measured, and what is wrong with those who were."""
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
        if kind in ("tessera", "peer")
        and any(speeds(r["us"], method).get(name) for r in rows(document))
    ]
    table = Table("shape", box=None, pad_edge=False, header_style="bold")
    for name in [*shown, "floor", "/ floor", "/ best peer"]:
        table.add_column(name, justify="right")
    for row in rows(document):
        times = speeds(row["us"], method)
        if not times:
            continue
        ours, peer, floor = (best(times, kinds, kind) for kind in ("tessera", "peer", "floor"))
        beaten = method_of_judgement(row) == method and row["below_floor"]
        table.add_row(
            row["shape"],
            *(figure(times[name]) if name in times else "-" for name in shown),
            (figure(floor[1]) + (" wrong" if beaten else "")) if floor else "-",
            f"{ours[1] / floor[1]:.2f}" if ours and floor else "-",
            f"{ours[1] / peer[1]:.2f}" if ours and peer else "-",
        )
    return table


def _listing(document: Mapping[str, Any], method: str) -> Table:
    """Contenders down, shapes across: for methods that are about the call, not the shape."""
    measured = [row for row in rows(document) if speeds(row["us"], method)]
    table = Table("call", box=None, pad_edge=False, header_style="bold")
    for row in measured:
        table.add_column(row["shape"], justify="right")
    names = dict.fromkeys(name for row in measured for name in speeds(row["us"], method))
    for name in names:
        times = (speeds(row["us"], method).get(name) for row in measured)
        table.add_row(name, *("-" if time is None else figure(time) for time in times))
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
    for row in rows(document):
        for name, time in row["below_floor"].items():
            yield f"the floor of {row['shape']} is wrong: {name} takes {figure(time)}"


def _first_of_each(document: Mapping[str, Any], key: str) -> dict[str, tuple[str, str, int]]:
    """For each contender the first shape with such a remark, the remark, and their number."""
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


def method_of_judgement(row: Mapping[str, Any]) -> str | None:
    """The method whose times were held against the floor."""
    methods = {method for by_method in row["us"].values() for method in by_method}
    return next((one for one in ("graph", "call", "l2") if one in methods), None)
