"""Loads without tokens in NumPy files, as EPLB counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import Array, tables_of
from tessera.tools.routing_files.kinds import MAX_LOAD
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads
from tessera.tools.routing_files.source import File

NAME = "loads [layers, experts], [steps, layers, experts] or [experts], as of EPLB, as .npy or .npz"
OPTIONS: tuple[str, ...] = ("loads",)
_NO_COUNTS = (
    "; means of counts need rounding; without --loads, ids may be -1, and --top-k reads logits"
)


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if {array.kind for array in tables_of(file).values()} == {"loads"} else 0


def may_be_told(file: File) -> bool:
    """Whether `--loads` says what the arrays of a file are: no name does, and they are numbers."""
    tables = tables_of(file).values()
    names = {array.kind for array in tables if array.tells_kind}
    kinds = {array.kind for array in tables}
    is_bool = any(array.dtype.kind == "b" for array in tables)
    return bool(kinds) and "" not in kinds and names <= {"loads"} and not is_bool


def read(file: File, options: Options) -> Loads:
    """The loads of a file of this form.

    Raises:
        ValueError: they are no counts.
    """
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for name, array in tables_of(file).items():
        if 0 in array.shape:
            expected = "[layers, experts], at least one of each"
            raise _refused(array, options, expected, list(array.shape))
        num_axes = len(array.shape)
        # Steps, and what a name stands for as one layer, are added up.
        num_summed = max(0, num_axes - 2) if name is None else num_axes - 1
        pieces = (_counts(array, one, options) for one in array.slices())
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


def _counts(array: Array, piece: npt.NDArray[Any], options: Options) -> npt.NDArray[np.int64]:
    # A limit in float64, since float16 has none so large. Comparisons with NaN are false.
    in_range = (piece >= 0) & (piece < np.float64(MAX_LOAD))
    are_counts = in_range & (piece == np.rint(piece)) if piece.dtype.kind == "f" else in_range
    if not are_counts.all():
        got = f"{piece[~are_counts][0]}{_NO_COUNTS if options.loads else ''}"
        raise _refused(array, options, f"counts, integers in [0, {MAX_LOAD})", got)
    return piece.astype(np.int64)


def _refused(array: Array, options: Options, expected: str, got: object) -> ValueError:
    option = ": --loads" if options.loads else ""
    name = "" if array.member is None else f": {array.name}"
    return ValueError(f"{array.file.name}{option}{name}: expected {expected}, got {got}")
