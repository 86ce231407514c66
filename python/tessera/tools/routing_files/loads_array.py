"""Loads without tokens in NumPy files, as EPLB counts them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import tables_of
from tessera.tools.routing_files.ids_array import whole_numbers
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Loads
from tessera.tools.routing_files.source import File

NAME = "loads [layers, experts], [steps, layers, experts] or [experts], as of EPLB, as .npy or .npz"
OPTIONS: tuple[str, ...] = ()


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if {array.kind for array in tables_of(file).values()} == {"loads"} else 0


def read(file: File, options: Options) -> Loads:
    """The loads of a file of this form.

    Raises:
        ValueError: they are no counts.
    """
    layers: dict[LayerKey, npt.NDArray[np.int64]] = {}
    for name, array in tables_of(file).items():
        counts = np.concatenate([whole_numbers(array, one) for one in array.slices()])
        if counts.size and counts.min() < 0:
            raise array.refuse("counts of 0 or more", int(counts.min()))
        counts = counts.astype(np.int64)
        if counts.ndim == 3:
            counts = counts.sum(axis=0)
        if counts.ndim == 1:
            layers[name] = counts
        elif name is not None:
            layers[name] = counts.sum(axis=0)
        else:
            layers |= dict(enumerate(counts))
    num_lines = sum(array.shape[0] for array in tables_of(file).values())
    return Loads(file.name, NAME, layers, num_lines)
