"""The part of the performance page about the other ops of the family."""

from __future__ import annotations

from page_text import origin, read_results, table

from tessera.tools.bench.report import figure

INTRODUCTION = """\
## The family

**align_block_size** is a call of the main op that gives the same tokens to the same groups. For
batches, it has to find out the groups that the op gets as counts; for adapters, it takes each
expert of each adapter as an expert of its own. **Floor** reads as many bytes as the op and writes
as many, and computes nothing; on a GPU it is the best of several grids, with and without
programmatic dependent launch, and on the CPU a loop in C++, while the ops are called from Python.
"""

FILES = {"On the NVIDIA H200": "h200/family.json", "On the CPU": "cpu_family.json"}


def family_section() -> str:
    """All that has been measured; empty if nothing has."""
    parts = []
    for title, name in FILES.items():
        result = read_results(name)
        if result is None:
            continue
        rows = []
        for row in result["rows"]:
            ours, main, floor = (row["us"][one] for one in ("op", "align_block_size", "floor"))
            ratios = [f"{ours / main:.2f}", f"{ours / floor:.2f}"]
            rows.append([f"{row['op']} {row['shape']}", *map(figure, (ours, main, floor)), *ratios])
        header = [
            "op and shape",
            "us",
            "align_block_size",
            "floor",
            "/ align_block_size",
            "/ floor",
        ]
        parts += [f"### {title}\n", origin(result), table(header, rows)]
    return "\n".join([INTRODUCTION, *parts]) if parts else ""
