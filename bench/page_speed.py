"""The part of the performance page about speed on the H200, beside peers and the floor."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from page_text import best_of_kind, bullets, compared, origin, read_results, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.judgement import GPU_METHODS, below_floor
from tessera.tools.bench.report import figure, kinds_of

NOT_MEASURED = "not measured"

# The files whose rows may be of the same shapes, each of a run of its own.
RUNS = {
    "speed": "h200/headline.json",
    "the grid": "h200/grid.json",
    "skew": "h200/skew.json",
    "64-bit ids and expert maps": "h200/variants.json",
}

COLUMNS = ["Tessera", "best peer", "ratio", "floor", "ratio"]

METHODS_TEXT = """\
**graph** times calls of one contender back to back: with programmatic dependent launch, a call's
launch and beginning overlap the call before. **chain** puts a plain kernel before and after every
call, as an engine does, and subtracts their time; the interquartile range is in brackets. Tessera
is compared with the best peer and the floor by the same method; a verdict rests on the less
flattering of the two methods. Percentages ahead or behind are relative to the peer's time.
"""

FLOOR_TEXT = """\
The floor is a kernel, not a bound: it writes only after it has read. With few ids Tessera writes
the padding while it still waits for the ids, and so can be faster.
"""


class BestPeers:
    """Finds the fastest peer of a shape, in this run or in an earlier one."""

    def __init__(self) -> None:
        self.known = {row["shape"]: row["us"] for row in read_results("h200/peers.json")["rows"]}

    def of(
        self, result: dict[str, Any], row: dict[str, Any], method: str = "graph"
    ) -> tuple[float, str] | None:
        """Its time by a method, and its name; earlier peers were measured by `graph` only."""
        known = self.known.get(row["shape"], {}).items() if method == "graph" else ()
        found = [(us, name) for name, us in known if not name.startswith("floor_")]
        here = best_of_kind(result, row, method, "peer")
        return min([*found, *([here] if here else [])], default=None)


def standing(result: dict[str, Any], row: dict[str, Any], peers: BestPeers) -> tuple[float, str]:
    """Our ratio to the best peer by the less flattering method, and that in words.

    Raises:
        LookupError: no peer was measured.
    """
    found = []
    for method in GPU_METHODS:
        ours, peer = times(row, method).get("tessera"), peers.of(result, row, method)
        if ours and peer:
            found.append((ours / peer[0], peer[1], method))
    if not found:
        raise LookupError(f"{row['shape']}: no peer was measured")
    ratio, name, method = max(found)
    percent = f"{100 * abs(ratio - 1):.0f}%"
    if percent == "0%":
        return ratio, f"level with {name} ({method})"
    if ratio < 1:
        return ratio, f"{percent} ahead of {name} ({method})"
    return ratio, f"**{percent} behind {name}** ({method})"


def headline_parts(verdicts: Verdicts, peers: BestPeers) -> list[str]:
    """The shapes that have targets."""
    result = read_results(RUNS["speed"])
    if result is None:
        return []
    elsewhere, rows, spreads = _other_runs(), [], []
    for row in result["rows"]:
        ours, target = times(row, "graph")["tessera"], TARGETS["us"][row["shape"]]
        verdict = verdicts.of(row["shape"], ours, target)
        others = elsewhere[row["shape"]]
        spreads += [max(ours, *others) / min(ours, *others)] * bool(others)
        flushed = times(row, "l2").get("tessera")
        rows.append(
            [
                row["shape"],
                figure(target["must"]),
                figure(target["aim"]),
                f"{verdict}; {standing(result, row, peers)[1]}",
                *_beside(result, row, peers, "graph"),
                _range(others),
                *_beside(result, row, peers, "chain"),
                figure(flushed) if flushed else "-",
            ]
        )
    other_runs = (
        "**Other runs** are times of the same shape by graph in other tables of this page. Each "
        "table is a run of its own, minutes apart and with arrays elsewhere in memory; for these "
        f"shapes they differ by up to {100 * (max(spreads) - 1):.0f}%.\n"
        if spreads
        else ""
    )
    header = ["shape", "must", "aim", "verdict", "graph: Tessera", *COLUMNS[1:]]
    header += ["other runs", "chain: Tessera", *COLUMNS[1:], "L2 flushed"]
    return [
        "### Speed\n",
        METHODS_TEXT,
        "Must and aim apply to the times by graph. " + other_runs
        if other_runs
        else "Must and aim apply to the times by graph.\n",
        origin(result),
        *_versions(result),
        table(header, rows),
        *verdicts.explained(),
        *_breaches(result),
        *_beaten_floors(result),
    ]


def grid_parts(verdicts: Verdicts, peers: BestPeers) -> list[str]:
    """All sizes."""
    result = read_results(RUNS["the grid"])
    if result is None:
        return []
    rows, losses = [], []
    limit, num_missed = TARGETS["best_peer"]["must"], 0
    for row in result["rows"]:
        ratio, text = standing(result, row, peers)
        cells = [cell for method in GPU_METHODS for cell in _beside(result, row, peers, method)]
        rows.append([row["shape"], *cells, text])
        if ratio > 1:
            num_missed += ratio > limit
            shown = f"**{ratio:.2f}**" if ratio > limit else f"{ratio:.2f}"
            note = verdicts.notes.get(row["shape"], "") if ratio > limit else ""
            losses.append(f"{row['shape']}: {text}, ratio {shown}. {note}".rstrip())
    header = ["shape", "graph: Tessera", *COLUMNS[1:], "chain: Tessera", *COLUMNS[1:], "verdict"]
    return [
        "### The grid\n",
        origin(result),
        "![Time over the number of ids, for Tessera, its peers and the floor](performance.svg)\n",
        f"{len(rows)} shapes. Tessera is faster than the best peer "
        + "; ".join(_count(result, peers, method) for method in GPU_METHODS)
        + ". Judged for each shape by the less flattering of these methods, it is faster on "
        f"{len(rows) - len(losses)}, and slower by more than the allowed ratio of {limit} on "
        f"{num_missed}.\n",
        "Where Tessera is slower, by the less flattering method:\n",
        bullets(losses, "Nowhere in this table."),
        table(header, rows),
        *_beaten_floors(result),
    ]


def _count(result: dict[str, Any], peers: BestPeers, method: str) -> str:
    ratios = [
        ours / peer[0]
        for row in result["rows"]
        if (ours := times(row, method).get("tessera")) and (peer := peers.of(result, row, method))
    ]
    if not ratios:
        return f"by {method}: {NOT_MEASURED}"
    whose = "" if method == "graph" else ", where the best peer is one of the same run,"
    return f"by {method}{whose} on {sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"


def _other_runs() -> dict[str, list[float]]:
    """Our times by graph in the runs of other tables, by shape."""
    found: dict[str, list[float]] = defaultdict(list)
    for title, name in RUNS.items():
        result = read_results(name)
        if title == "speed" or result is None:
            continue
        for row in result["rows"]:
            found[row["shape"]].append(times(row, "graph")["tessera"])
    return found


def _range(us: list[float]) -> str:
    if not us:
        return "-"
    least, greatest = figure(min(us)), figure(max(us))
    return least if least == greatest else f"{least} to {greatest}"


def _beside(
    result: dict[str, Any], row: dict[str, Any], peers: BestPeers, method: str
) -> list[str]:
    """Our time by a method, the best peer and the floor, each with our ratio to it."""
    ours = times(row, method).get("tessera")
    if ours is None:
        us = row.get("within_noise", {}).get("tessera", {}).get(method)
        return [NOT_MEASURED if us is None else "within the noise", "-", "-", "-", "-"]
    spread = f" ({figure(row['spread_us']['tessera'][method])})" if method == "chain" else ""
    cells = [figure(ours) + spread]
    for other in (peers.of(result, row, method), best_of_kind(result, row, method, "floor")):
        cells += compared(ours, other)
    return cells


def _versions(result: dict[str, Any]) -> list[str]:
    """Which releases of others were measured in the same run."""
    found = [
        f"{name} {version}"
        for name, one in result["contenders"].items()
        if (version := one.get("version"))
    ]
    return [f"In the same run: {', '.join(found)}.\n"] if found else []


def _breaches(result: dict[str, Any]) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for row in result["rows"]:
        for name, messages in row["violations"].items():
            rules = (message.partition(":")[0] for message in messages)
            found.setdefault(name, {}).update(dict.fromkeys(rules))
    texts = [f"{name}: {', '.join(rules)}" for name, rules in found.items()]
    return ["Rules of the contract that peers break here:\n", bullets(texts, "")] if texts else []


def _beaten_floors(result: dict[str, Any]) -> list[str]:
    kinds = kinds_of(result)
    texts = [
        f"{row['shape']}, {method}: {', '.join(f'{n} takes {figure(us)}' for n, us in of.items())}"
        for row in result["rows"]
        for method, of in below_floor(row["us"], kinds).items()
    ]
    return [f"Where the floor is beaten:\n\n{bullets(texts, '')}\n{FLOOR_TEXT}"] * bool(texts)
