"""Pictures for the terminal, made of text."""

from __future__ import annotations

from typing import Any

import numpy as np

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def load_picture(counts: Any, width: int, height: int = 4) -> list[str]:
    """Columns as high as the load of each expert, the lowest row last.

    `counts` holds each expert's load. If there are more experts than columns, a column shows the
    mean of neighbours.
    """
    columns = np.array([part.mean() for part in np.array_split(counts, min(width, len(counts)))])
    peak = columns.max()
    filled = np.ceil(columns * (8 * height / peak)).astype(int) if peak > 0 else 0 * columns
    rows = range(height - 1, -1, -1)
    return ["".join(_EIGHTHS[int(np.clip(n - 8 * row, 0, 8))] for n in filled) for row in rows]


def share_picture(part: int, whole: int, width: int) -> str:
    """A bar of `width` characters, filled as far as `part` is of `whole`."""
    filled = round(width * part / whole) if whole else 0
    return "█" * filled + "░" * (width - filled)
