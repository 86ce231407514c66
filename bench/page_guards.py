"""The part of the performance page about what safety against changing inputs costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from page_text import read_results, table

RESULTS = ("guards_cpu.json", "guards_gpu.json")

INTRODUCTION = """\
## What safety against changing inputs costs

Ids, maps and counts may change during a call, by another thread or stream, and nothing beside the
outputs is written. `bench/compare_builds.cpp` timed the same calls before and after the guards were
added: two builds in one process, in turns, with 8, 64, 256 and 65,536 experts, with and without a
map.
"""


def ratios(result: dict[str, Any]) -> dict[tuple[str, int], list[float]]:
    """Time after over time before of all calls, by op and number of ids."""
    found = defaultdict(list)
    for row in result["rows"]:
        num_ids = int(row["shape"].partition("x")[0])
        found[row["op"], num_ids].append(row["after_us"] / row["before_us"])
    return dict(found)


def guards_section() -> str:
    """The section; empty where nothing was measured."""
    parts = []
    for name in RESULTS:
        if (result := read_results(name)) is None:
            continue
        rows = [
            [op, f"{num_ids:,}", f"{statistics.median(found):.3f}", f"{max(found):.3f}"]
            for (op, num_ids), found in ratios(result).items()
        ]
        parts.append(
            f"{result['machine']}; commits {result['before'][:10]} and {result['after'][:10]}; "
            f"{result['date']}. {result['method']}.\n\n"
            + table(["op", "ids", "after / before, median", "largest"], rows)
        )
    return "\n".join([INTRODUCTION, *parts]) if parts else ""
