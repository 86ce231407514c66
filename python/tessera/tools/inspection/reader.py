"""Selects the reader of a log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy.typing as npt

from tessera.routing_log import RoutingLogReader, bounded_lines
from tessera.tools.inspection.arrays import ArrayReader

SUFFIXES = (".npy", ".npz", ".jsonl")


class Reader(Protocol):
    """Streams a log; has the attributes of `RoutingLogReader`."""

    model_id: str | None
    num_experts: int | None
    num_lines: int
    num_skipped: int
    skipped: list[str]

    def pieces(self) -> Iterable[tuple[int | None, npt.NDArray[Any]]]:
        """A layer (None if the log does not number them) and its next ids, [tokens, top_k]."""
        ...


def reader_of(
    path: Path, file: BinaryIO, *, num_experts: int | None = None, skip_bad_lines: bool = False
) -> Reader:
    """The reader of an open file with one of `SUFFIXES`; the options apply only to .jsonl."""
    if path.suffix != ".jsonl":
        return ArrayReader(path, file)
    return RoutingLogReader(
        bounded_lines(file), str(path), num_experts=num_experts, skip_bad_lines=skip_bad_lines
    )
