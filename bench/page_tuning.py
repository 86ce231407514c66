"""The part of the performance page about routing logs' own tokens."""

from __future__ import annotations

import itertools

from page_text import best_of_kind, compared, origin, read_results, table, times

from tessera.tools.bench.report import figure


def tuning_section() -> str:
    """The tuning loop on logs, at the advised block sizes; empty if that was not measured."""
    result = read_results("h200/tuning.json")
    if result is None:
        return ""
    sample = max(row["num_windows_timed"] for row in result["rows"])
    parts = [
        "## Routing logs, window by window\n",
        "`tessera bench --log` timed the op on an H200 on the logs' own tokens, in windows of "
        "consecutive tokens, with the block size that `tessera inspect` advises for their number. "
        f"Times are means over all windows of a log, or over a sample of {sample}. Blocks and "
        "padding are means over all windows, timed or not. The file of results also has the "
        "neighbouring block sizes.\n",
        origin(result),
    ]
    for layer, of_layer in itertools.groupby(result["rows"], key=lambda row: row["trace"]):
        rows = []
        for row in of_layer:
            if not row["is_recommended"]:
                continue
            ours = times(row, "graph")["tessera"]
            peer = best_of_kind(result, row, "graph", "peer")
            floor = best_of_kind(result, row, "graph", "floor")
            cells = [str(row["num_tokens"]), str(row["block_size"]), figure(ours)]
            for other in (peer, floor):
                cells += compared(ours, other)
            rows.append([*cells, f"{row['num_blocks']:.1f}", f"{row['padding_share']:.0%}"])
        header = ["tokens", "block size", "Tessera", "best peer", "ratio", "floor", "ratio"]
        parts += [f"### {layer}\n", table([*header, "blocks", "padding"], rows)]
    return "\n".join(parts)
