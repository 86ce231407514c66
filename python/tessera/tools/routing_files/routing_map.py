"""One-hot maps [tokens, experts], as Megatron-LM routes by: 1 where a token goes to an expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.routing_log import LayerKey
from tessera.tools.routing_files.arrays import tables_of
from tessera.tools.routing_files.ids_array import layers_first
from tessera.tools.routing_files.options import Options
from tessera.tools.routing_files.reading import Rows
from tessera.tools.routing_files.source import File

NAME = "one-hot maps [tokens, experts], bool or 0 and 1, as .npy or .npz"
OPTIONS: tuple[str, ...] = ("axes",)


def recognise(file: File) -> int:
    """How sure it is, in percent, that the file has this form."""
    return 90 if {array.kind for array in tables_of(file).values()} == {"map"} else 0


def read(file: File, options: Options) -> Rows:
    """The rows of a file of this form."""
    return _MapRows(file, options)


class _MapRows(Rows):
    form = NAME
    without_experts = "0 in the map of every expert"

    def __init__(self, file: File, options: Options) -> None:
        super().__init__(file, options)
        self._top_k: dict[LayerKey, int] = {}
        self._padding: dict[LayerKey, int] = {}

    def num_padding(self, layer: LayerKey) -> int:
        return self._padding.get(layer, 0)

    def read(self) -> Iterator[tuple[LayerKey, npt.NDArray[Any]]]:
        for layer, array in tables_of(self.file).items():
            self.num_experts = array.width
            is_first = len(array.shape) == 3 and layers_first(array, self.options, self.notes)
            first = 0
            for piece in array.slices():
                if len(array.shape) == 2:
                    yield layer, self._rows(layer, piece)
                elif is_first:
                    for number, rows in enumerate(piece, start=first):
                        yield number, self._rows(number, rows)
                else:
                    for number in range(array.shape[1]):
                        yield number, self._rows(number, piece[:, number])
                first += len(piece)

    def _rows(self, layer: LayerKey, chosen: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        if not np.isin(chosen, (0, 1)).all():
            bad = chosen[~np.isin(chosen, (0, 1))][0]
            raise ValueError(f"{self.name}: routing map: expected 0 and 1 alone, got {bad}")
        counts = (chosen != 0).sum(axis=1)
        top_k = max(int(counts.max(initial=0)), self._top_k.get(layer, 1))
        self._top_k[layer] = top_k
        self.num_lines += len(chosen)
        ids = np.full((len(chosen), top_k), -1, np.int32)
        tokens, experts = np.nonzero(chosen)
        slots = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids[tokens, slots] = experts
        routed = counts[counts > 0]
        if len(routed) and int(routed.min()) < top_k:
            least = min(int(routed.min()), self.least_top_k.get(layer, top_k))
            self.least_top_k[layer] = least
            self._padding[layer] = self.num_padding(layer) + int((top_k - routed).sum())
        return ids
