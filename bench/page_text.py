"""What the parts of the performance page have in common: figures, tables, where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessera.tools.bench.judgement import best, speeds
from tessera.tools.bench.report import kinds_of

RESULTS = Path(__file__).resolve().parent / "results"


def read_results(name: str) -> Any:
    """A file of results; None where it has not been measured."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def bullets(items: list[str], otherwise: str) -> str:
    """A list, or one sentence where it would be empty."""
    return "".join(f"- {item}\n" for item in items) or otherwise + "\n"


def origin(result: dict[str, Any]) -> str:
    """Machine, build, commit and date of results, and how they were measured."""
    modified = ", with uncommitted changes" if result["modified"] else ""
    parts = [result["machine"], result["build"]]
    if "gpu" in result:
        parts = [
            f"{result['gpu']}, driver {result.get('driver', 'unknown')}, "
            f"SM clock {result.get('clock_sm', 'unknown')}",
            f"CUDA {result['cuda']}, torch {result['torch']}",
        ]
    parts += [f"commit {(result['commit'] or 'unknown')[:10]}{modified}", result["date"]]
    methods = "".join(f" {name}: {text}." for name, text in result["methods"].items())
    return "; ".join(parts) + "." + methods + "\n"


def times(row: dict[str, Any], method: str) -> dict[str, float]:
    """The times of one method in a row, by contender."""
    return speeds(row["us"], method)


def best_of_kind(
    result: dict[str, Any], row: dict[str, Any], method: str, kind: str
) -> tuple[float, str] | None:
    """The least time of a kind of contender, and whose it is."""
    found = best(times(row, method), kinds_of(result), kind)
    return (found[1], found[0]) if found else None
