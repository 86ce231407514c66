"""The part of the performance page about the H200."""

from __future__ import annotations

from typing import Any

from page_speed import BestPeers, grid_parts, headline_parts
from page_strategies import strategy_parts
from page_text import bullets, listing, origin, read_results, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.report import figure

INTRODUCTION = """\
## align_block_size on the NVIDIA H200

Shape = tokens x experts x top_k / block_size; ids are int32 unless stated. Tessera gives stable
order at every size; most peers give each expert's tokens in random order. **Best peer** is the
fastest of all that were measured. Some were measured in the same run: torch; `cub_radix` and
`textbook`, written here from their descriptions; and the engines' own ops, where they could be
loaded. The others come from `bench/results/h200/peers.json`: they were measured once, on the same
kind of machine, and by graph alone, so that the best peer by chain is always one of the same run.
One of them, `sglang_v2_pdl`, is SGLang's just-in-time compiled kernel `moe_align_v2`, launched
with programmatic dependent launch. **Floor** is the best of several grids of a kernel that reads
the ids, passes one barrier of the block, writes outputs of the same sizes, and sorts nothing,
each with and without programmatic dependent launch: `floor/132/pdl` has 132 CTAs and is launched
with it, `floor/132` without.
"""


def h200_section() -> str:
    """All measurements on the H200; empty if there are none."""
    verdicts, peers = Verdicts("h200"), BestPeers()
    parts = [
        *headline_parts(verdicts, peers),
        *grid_parts(verdicts, peers),
        *strategy_parts(),
        *_skew(verdicts),
        *_variants(verdicts),
        *_addresses(),
        *_eager(verdicts),
        *_cold(verdicts),
    ]
    return "\n".join([INTRODUCTION, *parts]) + "\n" if parts else ""


def _ours(row: dict[str, Any], method: str = "graph") -> float:
    return times(row, method)["tessera"]


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
        "These ids prefer some experts, or are whole layers of recorded routing logs with the "
        "engine's warm-up. They are compared with uniform ids of the same sizes, and may take at "
        f"most {limit} times as long.\n",
        origin(result),
        table(["ids", "Tessera", "uniform", "ratio", "verdict"], rows + logs),
        *verdicts.explained(),
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
        f"A call may take {int64['must']} times as long as with int32 ids, plus the time of the "
        f"extra bytes at {int64['bytes_per_us'] / 1e6:.1f} TB/s. With a map it may take "
        f"{map_['must']} times as long as without.\n",
        origin(result),
        table(["shape", "Tessera", "int32, no map", "ratio", "verdict"], rows),
        *verdicts.explained(),
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
        f"Every array starts {', '.join(shifts)} bytes past the start of an allocation.\n",
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
                f"launches one empty kernel, called by the FFI: {verdict}"
            )
    target = TARGETS["eager_us"]
    return [
        "### A call from Python\n",
        "The table has the host time of a call with torch tensors. On a loaded host all rows take "
        f"up to twice as long, so compare rows. A call may take {target['must']} us (aim "
        f"{target['aim']}), and with `out=` "
        f"{TARGETS['eager_out_above_empty_kernel_us']['must']} us more than an empty kernel. "
        f"Measured before: {_known('eager_us')}.\n",
        origin(result),
        listing(result, "eager"),
        bullets(texts, ""),
        *verdicts.explained(),
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
        f"It may take {warm['must']} us after `tessera.warmup(device)` (aim {warm['aim']}); the "
        f"aim without it is {cold['aim']}. Measured before: {_known('cold_us')}.\n",
        origin(result),
        listing(result, "cold"),
        bullets(texts, ""),
        *verdicts.explained(),
    ]


def _known(key: str) -> str:
    known = read_results("h200/peers.json")[key]
    shown = {
        n: us if not isinstance(us, list) else f"{us[0]} to {us[1]}" for n, us in known.items()
    }
    return "; ".join(f"{name} {us}" for name, us in shown.items())
