"""The part of the performance page about the H200."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page_text import best_of_kind, bullets, figure, origin, read_results, table, times

TARGETS = json.loads((Path(__file__).resolve().parent / "targets.json").read_text())

INTRODUCTION = """\
## align_block_size on the NVIDIA H200

Shape = tokens x experts x top_k / block_size; ids are int32 unless stated. Tessera gives stable
order at every size; most peers give each expert's tokens in random order. **Best peer** is the
fastest of all that were measured: those of the run (torch; `cub_radix`, `textbook`: written here
from their description; the engines' own, where they could be loaded) and those of
`bench/results/h200/peers.json`, measured once on the same kind of machine. **Floor** is the best of
several grids of a kernel that reads the ids, passes one barrier of the block, writes outputs of the
same sizes, and sorts nothing, with and without programmatic dependent launch.
"""


class Verdicts:
    """Says whether targets are met, and keeps what has to be explained."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = read_results("h200/notes.json") or {}
        self.misses: list[str] = []

    def of(self, name: str, value: float, target: dict[str, float], subject: str = "") -> str:
        """A verdict for a table; a missed must is also kept, with its note, for `explained`."""
        must = target.get("must", float("inf"))
        if value > must:
            missed = f"missed by {figure(value - must)} ({100 * (value / must - 1):.0f}%)"
            note = self.notes.get(name, "No explanation yet.")
            self.misses.append(f"{subject}{name}: {figure(value)}, {missed}. {note}")
            return f"**{missed}**"
        if value <= target.get("aim", float("-inf")):
            return "aim met"
        return "met" if "must" in target else "aim missed"

    def explained(self, title: str) -> list[str]:
        """The misses since the last call, explained; nothing if there are none."""
        misses, self.misses = self.misses, []
        return [f"{title}\n", bullets(misses, "")] if misses else []


class BestPeers:
    """The fastest peer of a shape, of this run and of the peers measured before."""

    def __init__(self) -> None:
        self.known = {row["shape"]: row["us"] for row in read_results("h200/peers.json")["rows"]}

    def of(self, result: dict[str, Any], row: dict[str, Any]) -> tuple[float, str] | None:
        """Its time by the graph method, and its name."""
        known = self.known.get(row["shape"], {}).items()
        found = [(us, name) for name, us in known if not name.startswith("floor_")]
        here = best_of_kind(result, row, "graph", "peer")
        return min([*found, *([here] if here else [])], default=None)


def h200_section() -> str:
    """All that has been measured there; empty if nothing has."""
    verdicts, peers = Verdicts(), BestPeers()
    parts = [
        *_headline(verdicts, peers),
        *_grid(verdicts, peers),
        *_skew(verdicts),
        *_variants(verdicts),
        *_addresses(),
        *_eager(verdicts),
        *_cold(verdicts),
    ]
    return "\n".join([INTRODUCTION, *parts]) + "\n" if parts else ""


def _ours(row: dict[str, Any], method: str = "graph") -> float:
    return times(row, method)["tessera"]


def _headline(verdicts: Verdicts, peers: BestPeers) -> list[str]:
    result = read_results("h200/headline.json")
    if result is None:
        return []
    rows = []
    for row in result["rows"]:
        ours, floor, peer = _ours(row), best_of_kind(result, row, "graph", "floor"), None
        target = TARGETS["us"][row["shape"]]
        peer = peers.of(result, row)
        flushed = times(row, "l2").get("tessera")
        rows.append(
            [
                row["shape"],
                figure(ours),
                figure(target["must"]),
                figure(target["aim"]),
                verdicts.of(row["shape"], ours, target),
                *_beside(ours, peer),
                *_beside(ours, floor),
                figure(flushed) if flushed else "-",
            ]
        )
    header = ["shape", "Tessera", "must", "aim", "verdict", "best peer", "ratio", "floor", "ratio"]
    return [
        "### Speed\n",
        origin(result),
        *_versions(result),
        table([*header, "L2 flushed"], rows),
        *verdicts.explained("Missed, and why:"),
        *_breaches(result),
        *_wrong_floors(result),
    ]


def _versions(result: dict[str, Any]) -> list[str]:
    """Which releases of others were measured in the same run."""
    found = [
        f"{name} {version}"
        for name, one in result["contenders"].items()
        if (version := one.get("version"))
    ]
    return [f"In the same run: {', '.join(found)}.\n"] if found else []


def _beside(ours: float, other: tuple[float, str] | None) -> list[str]:
    """Time and name of another, and our ratio to it."""
    if other is None:
        return ["-", "-"]
    return [f"{figure(other[0])} {other[1]}", f"{ours / other[0]:.2f}"]


def _breaches(result: dict[str, Any]) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for row in result["rows"]:
        for name, messages in row["violations"].items():
            rules = (message.partition(":")[0] for message in messages)
            found.setdefault(name, {}).update(dict.fromkeys(rules))
    texts = [f"{name}: {', '.join(rules)}" for name, rules in found.items()]
    return ["Rules of the contract that peers break here:\n", bullets(texts, "")] if texts else []


def _wrong_floors(result: dict[str, Any]) -> list[str]:
    texts = [
        f"{row['shape']}: {', '.join(f'{n} takes {figure(us)}' for n, us in below.items())}"
        for row in result["rows"]
        if (below := row["below_floor"])
    ]
    return ["Where the floor is wrong, since something beats it:\n", bullets(texts, "")] * bool(
        texts
    )


def _grid(verdicts: Verdicts, peers: BestPeers) -> list[str]:
    result = read_results("h200/grid.json")
    if result is None:
        return []
    rows, losses, num_missed = [], [], 0
    for row in result["rows"]:
        ours, peer = _ours(row), peers.of(result, row)
        floor = best_of_kind(result, row, "graph", "floor")
        rows.append([row["shape"], figure(ours), *_beside(ours, peer), *_beside(ours, floor)])
        if peer and ours > peer[0]:
            ratio = ours / peer[0]
            note = verdicts.notes.get(row["shape"], "")
            too_much = ratio > TARGETS["best_peer"]["must"]
            num_missed += too_much
            losses.append(
                f"{row['shape']}: {figure(ours)} against {figure(peer[0])} of {peer[1]}, ratio "
                + (f"**{ratio:.2f}**. {note}".rstrip() if too_much else f"{ratio:.2f}")
            )
    header = ["shape", "Tessera", "best peer", "ratio", "floor", "ratio"]
    return [
        "### The grid\n",
        origin(result),
        "![Time over the number of ids, for Tessera, its peers and the floor](performance.svg)\n",
        f"{len(rows)} shapes: Tessera is faster than the best peer on {len(rows) - len(losses)}, "
        f"slower on {len(losses)}, and by more than the allowed ratio of "
        f"{TARGETS['best_peer']['must']} on {num_missed}.\n",
        "Where Tessera is slower:\n",
        bullets(losses, "Nowhere in this table."),
        table(header, rows),
        *_wrong_floors(result),
    ]


def _skew(verdicts: Verdicts) -> list[str]:
    result = read_results("h200/skew.json")
    if result is None:
        return []
    by_size: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        size = row["shape"].partition(": ")[2] if row["trace"] else row["shape"].rsplit("/", 1)[0]
        if row["skew"] == "uniform":
            size = row["shape"]
        by_size.setdefault(size, {})[row["trace"] or row["skew"]] = _ours(row)
    rows, logs = [], []
    for size, found in by_size.items():
        uniform = found.pop("uniform")
        for skew, us in found.items():
            verdict = verdicts.of(f"{size}/{skew}", us / uniform, TARGETS["skew"])
            cells = [figure(us), figure(uniform), f"{us / uniform:.2f}", verdict]
            is_log = skew not in ("zipf", "one-hot-expert")
            (logs if is_log else rows).append([f"{size} {skew}", *cells])
    limit = TARGETS["skew"]["must"]
    return [
        "### Skew\n",
        "Experts that are not equally popular, and recorded routing logs, whole layers with the "
        "engine's warm-up, beside uniform ids of the same sizes; at most "
        f"{limit} times the uniform time is allowed.\n",
        origin(result),
        table(["ids", "Tessera", "uniform", "ratio", "verdict"], rows + logs),
        *verdicts.explained("Missed, and why:"),
    ]


def _variants(verdicts: Verdicts) -> list[str]:
    result = read_results("h200/variants.json")
    if result is None:
        return []
    plain = {
        row["shape"]: _ours(row)
        for row in result["rows"]
        if row["dtype"] == "int32" and row["map"] == "none"
    }
    rows = []
    for row in result["rows"]:
        size = row["shape"].split("/int64")[0].split("/map")[0]
        if row["shape"] == size:
            continue
        us, base = _ours(row), plain[size]
        if row["dtype"] == "int64":
            extra_us = 4 * row["num_tokens"] * row["top_k"] / TARGETS["int64"]["bytes_per_us"]
            limit = TARGETS["int64"]["must"] * base + extra_us
        else:
            limit = TARGETS["map"]["must"] * base
        verdict = verdicts.of(row["shape"], us, {"must": limit})
        rows.append([row["shape"], figure(us), figure(base), f"{us / base:.2f}", verdict])
    int64, map_ = TARGETS["int64"], TARGETS["map"]
    return [
        "### 64-bit ids and expert maps\n",
        f"Allowed are {int64['must']} times the time with int32 ids plus the extra bytes at "
        f"{int64['bytes_per_us'] / 1e6:.1f} TB/s, and {map_['must']} times the time without a "
        "map.\n",
        origin(result),
        table(["shape", "Tessera", "int32, no map", "ratio", "verdict"], rows),
        *verdicts.explained("Missed, and why:"),
    ]


def _addresses() -> list[str]:
    result = read_results("h200/addresses.json")
    if result is None:
        return []
    names = [n for n, one in result["contenders"].items() if one["kind"] in ("tessera", "peer")]
    by_size: dict[str, list[dict[str, float]]] = {}
    for row in result["rows"]:
        by_size.setdefault(row["shape"].partition("/shift")[0], []).append(times(row, "graph"))
    rows = []
    for size, found in by_size.items():
        cells = []
        for name in names:
            us = [one[name] for one in found if name in one]
            cells.append(f"{figure(min(us))} to {figure(max(us))}" if us else "-")
            cells.append(f"{max(us) / min(us):.2f}" if us else "-")
        rows.append([size, *cells])
    shifts = dict.fromkeys(str(row["shift_bytes"]) for row in result["rows"])
    return [
        "### Addresses\n",
        f"Every array starts {', '.join(shifts)} bytes past the begin of an allocation.\n",
        origin(result),
        table(["shape", *(cell for name in names for cell in (name, "spread"))], rows),
    ]


def _eager(verdicts: Verdicts) -> list[str]:
    result = read_results("h200/eager.json")
    if result is None:
        return []
    texts = []
    for row in result["rows"]:
        us = times(row, "eager")
        verdict = verdicts.of("eager", us["tessera"], TARGETS["eager_us"], f"{row['shape']}, ")
        texts.append(f"{row['shape']}: a call takes {figure(us['tessera'])}: {verdict}")
        if "empty kernel" in us:
            above = us["tessera, out="] - us["empty kernel"]
            target = TARGETS["eager_out_above_empty_kernel_us"]
            verdict = verdicts.of("eager, out=", above, target, f"{row['shape']}, ")
            texts.append(
                f"{row['shape']}: with `out=` it takes {figure(above)} more than an op that "
                f"launches one empty kernel through the same binding: {verdict}"
            )
    target = TARGETS["eager_us"]
    return [
        "### A call from Python\n",
        "Host time of a call with torch tensors; on a loaded host all rows are up to twice as "
        f"long, so compare the rows of the table. Allowed are {target['must']} us (aim "
        f"{target['aim']}), and with `out=` "
        f"{TARGETS['eager_out_above_empty_kernel_us']['must']} us above an empty kernel. Measured "
        f"before: {_known('eager_us')}.\n",
        origin(result),
        _listing(result, "eager"),
        bullets(texts, ""),
        *verdicts.explained("Missed, and why:"),
    ]


def _cold(verdicts: Verdicts) -> list[str]:
    result = read_results("h200/cold.json")
    if result is None:
        return []
    texts = []
    for row in result["rows"]:
        us = times(row, "cold")
        for name, key in (
            ("tessera, after warmup", "cold_after_warmup_us"),
            ("tessera", "cold_us"),
        ):
            if name in us:
                verdict = verdicts.of("cold", us[name], TARGETS[key], f"{row['shape']}, {name}, ")
                texts.append(f"{row['shape']}, {name}: {figure(us[name])}: {verdict}")
    warm, cold = TARGETS["cold_after_warmup_us"], TARGETS["cold_us"]
    return [
        "### The first call of a process\n",
        f"Allowed are {warm['must']} us after `tessera.warmup(device)` (aim {warm['aim']}); the "
        f"aim without it is {cold['aim']}. Measured before: {_known('cold_us')}.\n",
        origin(result),
        _listing(result, "cold"),
        bullets(texts, ""),
        *verdicts.explained("Missed, and why:"),
    ]


def _known(key: str) -> str:
    known = read_results("h200/peers.json")[key]
    shown = {
        n: us if not isinstance(us, list) else f"{us[0]} to {us[1]}" for n, us in known.items()
    }
    return "; ".join(f"{name} {us}" for name, us in shown.items())


def _listing(result: dict[str, Any], method: str) -> str:
    measured = [times(row, method) for row in result["rows"]]
    names = dict.fromkeys(name for us in measured for name in us)
    rows = [[n, *(figure(us[n]) if n in us else "-" for us in measured)] for n in names]
    return table(["call", *(row["shape"] for row in result["rows"])], rows)
