"""The part of the performance page about the last step of `fused_experts` on GPUs."""

from __future__ import annotations

from typing import Any

import page_text
from page_text import origin, read_results, table
from page_verdicts import TARGETS, Verdicts

from tessera.tools.bench.report import figure

HEADER = [
    "shape",
    "MB",
    "combination",
    "TB/s",
    "copy",
    "TB/s",
    "/ copy",
    "verdict",
    "alone",
    "/ alone",
]


def fused_experts_combine_sections() -> list[str]:
    """A section for each GPU with results."""
    files = sorted(page_text.RESULTS.glob("*/fused_experts_combine.json"))
    return [_section(file.parent.name) for file in files]


def _section(folder: str) -> str:
    result = read_results(f"{folder}/fused_experts_combine.json")
    verdicts = Verdicts(folder)
    target = TARGETS["fused_experts_combine_over_copy"]
    rows = [_cells(row, target, verdicts) for row in result["rows"]]
    return "\n".join(
        [
            f"## The combination of fused_experts on the {result['gpu']}\n",
            "The combination is the last step of a call. It reads the weighted rows of all pairs, "
            "and writes one sum for each token. `bench/fused_experts_combine.py` compares it with "
            "a copy that reads and writes as many bytes in total. The combination may take at most "
            f"{target['must']} times as long as the copy, that is, 0.9 of the copy's bandwidth. "
            "Each time begins when the previous kernel ends, so it includes the start of a kernel. "
            "The GPU prepares the start of the combination while the product still runs; it does "
            "not do so for the copy. The last two columns show the duration of the copy alone, and "
            "the combination's time divided by it.\n",
            origin(result),
            table(HEADER, rows),
            *verdicts.explained(),
        ]
    )


def _cells(row: dict[str, Any], target: dict[str, float], verdicts: Verdicts) -> list[str]:
    megabytes, us = row["bytes"] / 1e6, row["us"]
    ratio = us["combine"] / us["copy"]
    name = f"{row['shape']}, combination"
    return [
        row["shape"],
        figure(megabytes),
        figure(us["combine"]),
        f"{megabytes / us['combine']:.2f}",
        figure(us["copy"]),
        f"{megabytes / us['copy']:.2f}",
        f"{ratio:.2f}",
        verdicts.of(name, ratio, target, "time over a copy's, "),
        figure(us["copy_alone"]),
        f"{us['combine'] / us['copy_alone']:.2f}",
    ]
