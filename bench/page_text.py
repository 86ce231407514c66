"""What the parts of the performance page have in common: figures, tables, where they come from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tessera.tools.bench.judgement import best, speeds
from tessera.tools.bench.report import figure, kinds_of

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


def compared(ours: float | None, other: tuple[float, str] | None) -> list[str]:
    """Cells of another's time, with its name, and of our time over it."""
    if other is None:
        return ["-", "-"]
    us, name = other
    return [f"{figure(us)} {name}".rstrip(), "-" if ours is None else f"{ours / us:.2f}"]


def listing(result: dict[str, Any], method: str) -> str:
    """Calls down, shapes across."""
    measured = [times(row, method) for row in result["rows"]]
    names = dict.fromkeys(name for us in measured for name in us)
    rows = [[n, *(figure(us[n]) if n in us else "-" for us in measured)] for n in names]
    return table(["call", *(row["shape"] for row in result["rows"])], rows)


def spoiled(result: dict[str, Any]) -> list[str]:
    """A list of the times that other programs spoiled, under a title; empty if there are none."""
    texts = [
        f"{row['shape']}: {', '.join(names)}"
        for row in result["rows"]
        if (names := row.get("spoiled"))
    ]
    title = "Spoiled by other programs, as threads waited for a processor in most repetitions:\n"
    return [title, bullets(texts, "")] if texts else []


def is_check(description: str | None) -> bool:
    """Whether the command line of a page's generator asks for a check only."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the page is out of date"
    )
    return bool(parser.parse_args().check)


def require_current(is_current: bool, path: Path) -> None:
    """End a check with the exit code 1 where a file is not what would be written."""
    if not is_current:
        name = path.relative_to(RESULTS.parent.parent)
        sys.exit(f"{name} is out of date: run bench/{Path(sys.argv[0]).name}")
