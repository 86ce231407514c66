"""What the performance page judges: targets, and whether they are met."""

from __future__ import annotations

import json
from pathlib import Path

from page_text import bullets, read_results

from tessera.tools.bench.report import figure

TARGETS = json.loads((Path(__file__).resolve().parent / "targets.json").read_text())


def _missed(value: float, must: float) -> str:
    """By how much, also where that is next to nothing."""
    difference, percent = value - must, 100 * (value / must - 1)
    by = figure(difference) if difference >= 0.005 else "less than 0.01"
    return f"missed by {by} ({percent:.{0 if percent >= 0.5 else 1}f}%)"


class Verdicts:
    """Says whether targets are met, and keeps what has to be explained.

    A GPU's folder of results has notes, which explain misses. If a note explains several misses,
    its key has all their names, with "; " between them.
    """

    def __init__(self, folder: str) -> None:
        found: dict[str, str] = read_results(f"{folder}/notes.json") or {}
        self.notes = {name: note for names, note in found.items() for name in names.split("; ")}
        self.misses: dict[str | None, list[str]] = {}

    def of(
        self,
        name: str,
        value: float,
        target: dict[str, float],
        subject: str = "",
        note_of: str | None = None,
    ) -> str:
        """A verdict for a table; a missed must is also kept, with its note, for `explained`.

        note_of: the name that the note of a miss has, if it is not `name`.
        """
        must = target.get("must", float("inf"))
        if value > must:
            missed = _missed(value, must)
            of_note = self.misses.setdefault(self.notes.get(note_of or name), [])
            of_note.append(f"{subject}{name}: {figure(value)}, {missed}")
            return f"**{missed}**"
        if value <= target.get("aim", float("-inf")):
            return "aim met"
        return "target met" if "must" in target else "aim missed"

    def explained(self) -> list[str]:
        """The misses since the last call, explained; nothing if there are none."""
        misses, self.misses = self.misses, {}
        texts = []
        for note, of_note in misses.items():
            if note is None or len(of_note) == 1:
                texts += [f"{miss}. {note or 'No explanation yet.'}" for miss in of_note]
            else:
                texts.append("\n  - ".join([note, *of_note]))
        return ["Missed, and why:\n", bullets(texts, "")] if texts else []
