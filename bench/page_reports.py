"""The part of the performance page about statistics and validation."""

from __future__ import annotations

from page_text import origin, read_results, table, times
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.report import figure


def reports_section() -> str:
    """What they add to a call on the H200; empty if that was not measured."""
    result = read_results("h200/reports.json")
    if result is None:
        return ""
    verdicts = Verdicts()
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
            "Calls with outputs that the caller owns, over the time of a call that asks for "
            f"neither. Allowed are {TARGETS['statistics']['must']} with `statistics=` and "
            f"{TARGETS['validation']['must']} with `validate=True`, without reading back. "
            "A call that asks for neither runs kernels that know neither.\n",
            origin(result),
            table([*header, "all three /"], rows),
            *verdicts.explained(),
        ]
    )
