"""Loads without tokens in NumPy files, as EPLB counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import Array, tables_of
from tessera.tools.routing_files.ids_array import whole_numbers
from tessera.tools.routing_files.kinds import MAX_LOAD
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads
from tessera.tools.routing_files.source import File

NAME = "loads [layers, experts], [steps, layers, experts] or [experts], as of EPLB, as .npy or .npz"
OPTIONS: tuple[str, ...] = ("loads",)


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if {array.kind for array in tables_of(file).values()} == {"loads"} else 0


def may_be_told(file: File) -> bool:
    """Whether `--loads` says what the arrays of a file are: no name does, and they are integers."""
    tables = tables_of(file).values()
    names = {array.kind for array in tables if array.tells_kind}
    kinds = {array.kind for array in tables}
    return (
        bool(kinds)
        and kinds <= {"ids", "loads", "map", "packed", "zeros"}
        and names <= {"loads"}
        and all(0 not in array.shape for array in tables)
    )


def read(file: File, options: Options) -> Loads:
    """The loads of a file of this form.

    Raises:
        ValueError: they are no counts.
    """
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for name, array in tables_of(file).items():
        num_axes = len(array.shape)
        # Steps, and what a name stands for as one layer, are added up.
        num_summed = max(0, num_axes - 2) if name is None else num_axes - 1
        pieces = (_counts(array, one) for one in array.slices())
        if num_summed:
            total = np.zeros(array.shape[num_summed:])
            for piece in pieces:
                total += piece.sum(axis=tuple(range(num_summed)), dtype=np.float64)
            counts = np.minimum(total, MAX_LOAD).astype(np.int64)
        else:
            counts = np.concatenate([*pieces])
        if counts.ndim == 1:
            layers[name] = counts
        else:
            layers |= dict(enumerate(counts))
    num_lines = sum(array.shape[0] for array in tables_of(file).values())
    return Loads(file.name, NAME, layers, num_lines)


def _counts(array: Array, piece: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    counts = whole_numbers(array, piece)
    for extreme in (counts.min(initial=0), counts.max(initial=0)):
        if not 0 <= extreme < MAX_LOAD:
            raise array.refuse(f"counts in [0, {MAX_LOAD})", int(extreme))
    return counts.astype(np.int64)
