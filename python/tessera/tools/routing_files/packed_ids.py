"""Ids packed with their weights, as FlashInfer takes them: (id << 16) | weight in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import arrays_of, tables_of
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Rows
from tessera.tools.routing_files.source import File

NAME = "ids packed as (id << 16) | bfloat16 weight, [tokens, top_k], with --packed, as .npy or .npz"
OPTIONS: tuple[str, ...] = ("packed", "zero_experts")


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    tables = tables_of(file).values()
    if file.head.startswith(b"PK") and "topk_ids" in arrays_of(file):
        return 0
    return 90 if {array.kind for array in tables} == {"packed"} else 0


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form.

    Raises:
        ValueError: `--packed` is missing.
    """
    if not options.packed:
        array = next(iter(tables_of(file).values()))
        largest = int(next(array.slices(counted=False)).max())
        raise ValueError(
            f"{file.name}: expected ids, got {largest} and others that look like packed ids, "
            "(id << 16) | bfloat16 weight: --packed reads them"
        )
    return _PackedRows(file, options)


class _PackedRows(Rows):
    form = NAME

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        for layer, array in tables_of(self.file).items():
            for piece in array.slices():
                self.num_lines += len(piece)
                yield layer, piece.reshape(len(piece), array.width) >> 16
