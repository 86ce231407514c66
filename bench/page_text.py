"""What the parts of the performance page have in common: figures, tables, where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def read_results(name: str) -> Any:
    """A file of results; None where it has not been measured."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def figure(us: float) -> str:
    """Three significant digits or so."""
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:.0f}"


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
    return {name: by[method] for name, by in row["us"].items() if method in by}


def best_of_kind(
    result: dict[str, Any], row: dict[str, Any], method: str, kind: str
) -> tuple[float, str] | None:
    """The least time of a kind of contender, and whose it is."""
    kinds = {name: one["kind"] for name, one in result["contenders"].items()}
    found = [(us, name) for name, us in times(row, method).items() if kinds.get(name) == kind]
    return min(found, default=None)
