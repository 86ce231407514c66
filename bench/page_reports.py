"""The part of the performance page about statistics and validation."""

from __future__ import annotations

from page_text import origin, read_results, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.report import figure


def reports_section() -> str:
    """The time that they add to a call on the H200; empty if that was not measured."""
    result = read_results("h200/reports.json")
    if result is None:
        return ""
    verdicts = Verdicts("h200")
    rows = []
    for row in result["rows"]:
        us = times(row, "graph")
        base = us["nothing"]
        cells = [row["shape"], figure(base), f"{us['expert_counts'] / base:.2f}"]
        for name in ("statistics", "validation"):
            ratio = us[name] / base
            verdict = verdicts.of(f"{row['shape']}, {name}", ratio, TARGETS[name])
            cells += [f"{ratio:.2f}", verdict]
        rows.append([*cells, f"{us['all'] / base:.2f}"])
    header = ["shape", "neither", "counts /", "statistics /", "verdict", "validation /", "verdict"]
    return "\n".join(
        [
            "## Statistics and validation\n",
            "The times are relative to a call that requests neither; the caller owns the "
            f"outputs. A call may take {TARGETS['statistics']['must']} times as long with "
            f"`statistics=`, and {TARGETS['validation']['must']} times with `validate=True`, "
            "without reading back. A call that requests neither runs kernels without code for "
            "them.\n",
            origin(result),
            table([*header, "all three /"], rows),
            *verdicts.explained(),
        ]
    )
