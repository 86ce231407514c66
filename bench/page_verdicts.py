"""What the performance page judges: targets, and whether they are met."""

from __future__ import annotations

import json
from pathlib import Path

from page_text import bullets, read_results

from tessera.tools.bench.report import figure

TARGETS = json.loads((Path(__file__).resolve().parent / "targets.json").read_text())


class Verdicts:
    """Says whether targets are met, and keeps what has to be explained."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = read_results("h200/notes.json") or {}
        self.misses: list[str] = []

    def of(self, name: str, value: float, target: dict[str, float], subject: str = "") -> str:
        """A verdict for a table; a missed must is also kept, with its note, for `explained`."""
        must = target.get("must", float("inf"))
        if value > must:
            missed = f"missed by {figure(value - must)} ({100 * (value / must - 1):.0f}%)"
            note = self.notes.get(name, "No explanation yet.")
            self.misses.append(f"{subject}{name}: {figure(value)}, {missed}. {note}")
            return f"**{missed}**"
        if value <= target.get("aim", float("-inf")):
            return "aim met"
        return "target met" if "must" in target else "aim missed"

    def explained(self) -> list[str]:
        """The misses since the last call, explained; nothing if there are none."""
        misses, self.misses = self.misses, []
        return ["Missed, and why:\n", bullets(misses, "")] if misses else []
